// @ts-check
// The affinity explorer, for anywidget and for the static page alike. It holds unit feature maps of every network
// and computes rows of the affinity itself, so that a click asks nobody for anything.

/**
 * What a host offers: anywidget's model, or the stand-in of the static page.
 * @typedef {{ get(name: string): any, set(name: string, value: any): void, save_changes(): void,
 *   on(event: string, callback: () => void): void, off(event: string, callback: () => void): void,
 *   send(content: object, callbacks?: object, buffers?: ArrayBuffer[]): void }} Model
 */
/** @typedef {{ key: string, name: string, c: number, h: number, w: number, unit: Float32Array, steps: number[], past: DataView }} Net
 *   a network's unit maps, c * h * w; and where its training was followed, the steps and the row of one query at each */
/** @typedef {[number, number]} Point a position, row and column, in pixels of the LR image */
/** @typedef {{ low: number, high: number, colours: Uint8ClampedArray }} Scale 256 RGBA colours from low to high */
/** @typedef {{ values: Float64Array, scale: Scale, label: string, note: string }} Heat what one heat map shows */

const SHARED = ["query", "query2", "queries", "tap", "mode", "colour", "scale_max", "difference_max", "view", "shown", "step"];
const STATE = [...SHARED, "status", "_info", "_data"];
const EVENTS = STATE.map((name) => `change:${name}`);
const STORED_STATE = 'script[type="application/vnd.jupyter.widget-state+json"]'; // on a page that nbconvert made
const MOST_ZOOM = 16;
const MOST_MB = 8; // of an image of one's own: a notebook server passes no message of more than 10

const HALF = new Float32Array(65536); // the value of every fp16 number
for (let i = 0; i < 65536; i++) {
  const exponent = (i >> 10) & 31, fraction = (i & 1023) / 1024;
  HALF[i] = (i & 0x8000 ? -1 : 1) * (exponent ? 2 ** (exponent - 15) * (1 + fraction) : 2 ** -14 * fraction);
}

/** Read fp16 unit vectors and make them exactly of length 1 again (or 0, where a network sees nothing).
 * @param {DataView} bytes @param {number} c @param {number} n @returns {Float32Array} */
function readUnit(bytes, c, n) {
  const unit = new Float32Array(c * n), square = new Float64Array(n);
  for (let k = 0, i = 0; k < c; k++) {
    for (let p = 0; p < n; p++, i++) {
      unit[i] = HALF[bytes.getUint16(2 * i, true)];
      square[p] += unit[i] * unit[i];
    }
  }
  for (let k = 0, i = 0; k < c; k++) for (let p = 0; p < n; p++, i++) if (square[p]) unit[i] /= Math.sqrt(square[p]);
  return unit;
}

/** One row of the affinity: the cosine of every position with position p.
 * @param {Net} net @param {number} p @returns {Float64Array} */
export function affinityRow(net, p) {
  const n = net.h * net.w, row = new Float64Array(n);
  for (let k = 0; k < net.c; k++) {
    const strength = net.unit[k * n + p], channel = net.unit.subarray(k * n, (k + 1) * n);
    if (strength) for (let j = 0; j < n; j++) row[j] += strength * channel[j];
  }
  return row;
}

/** @param {Float64Array} a @param {Float64Array} b @returns {Float64Array} a less b */
const minus = (a, b) => a.map((v, i) => v - b[i]);
/** @param {Float64Array} values */
const mean = (values) => values.reduce((sum, v) => sum + v, 0) / values.length;
/** @param {number} v @param {number} low @param {number} high */
const clamp = (v, low, high) => Math.min(Math.max(v, low), high);
/** @param {number} v @param {number} [digits] with a true minus sign */
const fixed = (v, digits = 2) => v.toFixed(digits).replace(/^-(?=.*[1-9])/, "\u2212").replace(/^-/, "");
/** @param {number} v with its sign */
const signed = (v) => (v >= 0.005 ? "+" : "") + fixed(v);

/** The training steps at which some network's row was kept, ascending. @param {any} info @returns {number[]} */
const stepsOf = (info) => info.past?.steps ?? [];

/** What a file or an address asks of the view, less all that this view does not have: anybody can have written it.
 * @param {Record<string, any>} asked @param {any} info @returns {Record<string, any>} */
export function known(asked, info) {
  const number = (/** @type {any} */ v, /** @type {number} */ low, /** @type {number} */ high) => Number.isFinite(v) && v >= low && v <= high;
  const point = (/** @type {any} */ v) => Array.isArray(v) && v.length === 2
    && v.every((n, i) => Number.isInteger(n) && number(n, 0, info.size[i] - 1));
  const top = (/** @type {any} */ v) => v === null || (number(v, 0, 2) && v > 0);
  /** @type {Record<string, (v: any) => boolean>} */
  const tests = {
    query: point, query2: (v) => v === null || point(v),
    queries: (v) => Array.isArray(v) && v.length <= 1000 && v.every(point),
    tap: (v) => info.taps.includes(v), mode: (v) => ["similarity", "difference"].includes(v),
    colour: (v) => v !== "difference" && Object.hasOwn(info.colours, v), scale_max: top, difference_max: top,
    view: (v) => Array.isArray(v) && v.length === 3 && number(v[0], 1, MOST_ZOOM) && number(v[1], 0, 1) && number(v[2], 0, 1),
    shown: (v) => info.images.some((/** @type {any} */ image) => image.key === v), step: (v) => v === null || stepsOf(info).includes(v),
  };
  return Object.fromEntries(SHARED.filter((name) => Object.hasOwn(asked, name) && tests[name](asked[name])).map((name) => [name, asked[name]]));
}

/** The part of an address that keeps a view, where it is not as the page was written.
 * @param {Record<string, any>} state @param {Record<string, any>} start @returns {string} */
export function toAddress(state, start) {
  const text = (/** @type {any} */ v) => /** @type {string} */ (Array.isArray(v) ? v.map(text).join(Array.isArray(v[0]) ? ";" : ",")
    : typeof v === "number" ? String(Number(v.toFixed(4))) : v ?? "");
  const moved = SHARED.filter((name) => text(state[name]) !== text(start[name]));
  return moved.map((name) => `${name}=${encodeURIComponent(text(state[name])).replaceAll("%2C", ",").replaceAll("%3B", ";")}`).join("&");
}

/** What an address asks for; what is malformed is left out.
 * @param {string} address after the # @param {any} info @returns {Record<string, any>} */
export function fromAddress(address, info) {
  const numbers = (/** @type {string} */ text) => text.split(",").map((v) => (v.trim() ? Number(v) : NaN));
  /** @type {Record<string, any>} */
  const asked = {};
  for (const [name, text] of new URLSearchParams(address)) {
    if (["tap", "mode", "colour", "shown"].includes(name)) asked[name] = text;
    else if (name === "queries") asked[name] = text ? text.split(";").map(numbers) : [];
    else if (text) asked[name] = ["query", "query2", "view"].includes(name) ? numbers(text) : numbers(text)[0];
    else asked[name] = null;
  }
  return known(asked, info);
}

/** Make an element.
 * @param {string} tag @param {Record<string, any>} [attributes] @param {...(Node | string)} children @returns {any} */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null) element.setAttribute(name, String(value));
  }
  element.append(...children);
  return element;
}

/** Give a file to the reader; nothing leaves the machine.
 * @param {Blob} blob @param {string} name */
function download(blob, name) {
  const url = URL.createObjectURL(blob);
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

/** @param {string} hex 256 colours as 6 digits each @returns {Uint8ClampedArray} RGBA */
function readColours(hex) {
  const colours = new Uint8ClampedArray(1024).fill(255);
  for (let i = 0; i < 768; i++) colours[4 * Math.floor(i / 3) + (i % 3)] = parseInt(hex.slice(2 * i, 2 * i + 2), 16);
  return colours;
}

/** A colour for CSS. @param {Uint8ClampedArray} colours @param {number} share where on the scale, 0 to 1 */
const css = (colours, share) => `rgb(${colours.slice(4 * Math.round(share * 255)).slice(0, 3).join()})`;

/** A heat map, one pixel a position.
 * @param {Heat} heat @param {number} h @param {number} w @returns {HTMLCanvasElement} */
function colourMap(heat, h, w) {
  const canvas = make("canvas", { width: w, height: h }), context = canvas.getContext("2d");
  const image = context.createImageData(w, h), { low, high, colours } = heat.scale;
  for (let p = 0; p < h * w; p++) {
    const i = 4 * Math.round(clamp((heat.values[p] - low) / (high - low), 0, 1) * 255);
    for (let k = 0; k < 4; k++) image.data[4 * p + k] = colours[i + k];
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

/** The part of the image that a view shows, as fractions: its corner and its size.
 * @param {[number, number, number]} view zoom, and row and column of the centre as fractions */
function windowOf([zoom, y, x]) {
  const size = 1 / clamp(zoom, 1, MOST_ZOOM);
  return { y: clamp(y - size / 2, 0, 1 - size), x: clamp(x - size / 2, 0, 1 - size), size };
}

/** What one view computes and keeps: unit maps, rows, scales. No DOM. */
export class Rows {
  /** @param {Model} model */
  constructor(model) {
    this.model = model;
    /** @type {any} */ this.source = null;
    /** @type {Net[]} */ this.nets = [];
    /** @type {Map<string, Float64Array[]>} */ this.cache = new Map();
    /** @type {Record<string, Uint8ClampedArray>} */ this.colours = {};
  }

  /** Take new unit maps, if the host has others than before. */
  refresh() {
    const data = this.model.get("_data"), info = this.model.get("_info");
    if (data === this.source) return;
    this.source = data;
    this.cache.clear();
    for (const [name, hex] of Object.entries(info.colours)) this.colours[name] = readColours(/** @type {string} */ (hex));
    this.nets = (data.nets ?? []).map((/** @type {any} */ net) => ({ ...net, unit: readUnit(net.unit, net.c, net.h * net.w) }));
  }

  /** @returns {[number, number]} height and width of the LR image */
  get size() { return this.model.get("_info").size; }
  /** The teacher, if there is one. @returns {Net | undefined} */
  get teacher() { return this.nets.find((net) => net.key === this.model.get("_info").teacher); }
  /** @param {Net} net @returns {boolean} whether it is a student whose map can be compared with the teacher's */
  comparable(net) {
    const teacher = this.teacher;
    return teacher !== undefined && net !== teacher && net.h === teacher.h && net.w === teacher.w;
  }

  /** The position of a point in a network's map, which may be larger than the LR image.
   * @param {Net} net @param {Point} point */
  at(net, [y, x]) {
    const [h, w] = this.size;
    return Math.floor(((y + 0.5) * net.h) / h) * net.w + Math.floor(((x + 0.5) * net.w) / w);
  }

  /** The step of its training at which a network is shown for a point; null: as it is now.
   * @param {Net} net @param {Point} point @returns {number | null} */
  stepOf(net, point) {
    const step = this.model.get("step"), followed = net.steps?.filter((seen) => seen <= step);
    return step !== null && followed?.length && same(point, this.model.get("_info").past.query) ? followed[followed.length - 1] : null;
  }

  /** The row of a point in one network. @param {Net} net @param {Point} point @returns {Float64Array} */
  row(net, point) {
    const step = this.stepOf(net, point), n = net.h * net.w;
    if (step === null) return affinityRow(net, this.at(net, point));
    const start = net.steps.indexOf(step) * n;
    return Float64Array.from({ length: n }, (_, i) => HALF[net.past.getUint16(2 * (start + i), true)]);
  }

  /** The rows of a point, one for each network. @param {Point} point */
  of(point) {
    const key = `${point} ${this.model.get("step")}`;
    let rows = this.cache.get(key);
    if (!rows) {
      rows = this.nets.map((net) => this.row(net, point));
      if (this.cache.size > 8) this.cache.clear();
      this.cache.set(key, rows);
    }
    return rows;
  }

  /** The scale of the affinities, or of the differences: one chosen is the same at every tap, query and step.
   * @param {boolean} difference @returns {Scale} */
  scale(difference) {
    const info = this.model.get("_info"), chosen = this.model.get(difference ? "difference_max" : "scale_max");
    const [signs, widest] = info.scales[this.source.tap];
    const high = chosen ?? (difference ? widest : 1), colours = this.colours[difference ? "difference" : this.model.get("colour")];
    const below = difference || (chosen === null ? signs : Object.values(info.scales).some((/** @type {any} */ needs) => needs[0]));
    return { low: below ? -high : 0, high, colours };
  }

  /** Whether the maps of students show their difference to the teacher's. */
  get different() { return this.model.get("mode") === "difference" && this.nets.some((net) => this.comparable(net)); }

  /** What every network's heat map shows for a point. @param {Point} point @returns {Heat[]} */
  heats(point) {
    const rows = this.of(point), teacher = this.teacher, base = teacher && rows[this.nets.indexOf(teacher)];
    return this.nets.map((net, k) => {
      const step = this.stepOf(net, point), name = step === null ? net.name : `${net.name}, step ${step}`;
      const likeness = `mean affinity ${fixed(mean(rows[k]))}`;
      if (!base || !this.comparable(net)) return { values: rows[k], scale: this.scale(false), label: name, note: likeness };
      const gap = minus(rows[k], base), far = `mean |\u0394| ${fixed(mean(gap.map(Math.abs)), 3)}`;
      return this.different ? { values: gap, scale: this.scale(true), label: `${name}, \u0394`, note: far }
        : { values: rows[k], scale: this.scale(false), label: name, note: `${likeness}, ${far}` };
    });
  }

  /** The affinities of two points in words. @param {Point} a @param {Point} b */
  sentence(a, b) {
    const rows = this.of(a), teacher = this.teacher;
    const base = teacher && rows[this.nets.indexOf(teacher)][this.at(teacher, b)];
    return this.nets.map((net, k) => {
      const value = rows[k][this.at(net, b)];
      return `${net.name} ${fixed(value)}` + (base !== undefined && this.comparable(net) ? ` (\u0394 ${signed(value - base)})` : "");
    }).join(", ");
  }
}

/** @param {Point | null} a @param {Point | null} b */
const same = (a, b) => a !== null && b !== null && a[0] === b[0] && a[1] === b[1];
/** @param {Point} point */
const place = ([y, x]) => `row ${y}, column ${x}`;

/** A canvas with marks on it, that shows the part of an image which the view names. */
class Frame {
  /** @param {string} title @param {string} kind image or map */
  constructor(title, kind) {
    this.canvas = make("canvas", { class: "fx-canvas", role: "img", tabindex: 0 });
    this.marks = [1, 2].map((i) => make("i", { class: `fx-mark fx-mark${i}`, "aria-hidden": "true" }));
    this.aim = make("i", { class: "fx-aim", "aria-hidden": "true" });
    this.title = make("figcaption", { class: "fx-title" }, title);
    this.note = make("span", { class: "fx-note" });
    /** @type {Heat | null} */ this.heat = null; // of a map
    this.box = make("div", { class: "fx-frame" }, this.canvas, ...this.marks, this.aim);
    this.element = make("figure", { class: `fx-${kind}` }, this.title, this.box, this.note);
  }

  /** Draw the visible part at the resolution of the screen.
   * @param {CanvasImageSource} source @param {number} h @param {number} w @param {any} view @param {boolean} smooth */
  draw(source, h, w, view, smooth) {
    const { canvas } = this, part = windowOf(view);
    canvas.style.aspectRatio = `${w} / ${h}`;
    canvas.width = Math.max(1, Math.round(canvas.clientWidth * devicePixelRatio));
    canvas.height = Math.max(1, Math.round((canvas.width * h) / w));
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = smooth && canvas.width < w / part.size;
    context.imageSmoothingQuality = "high";
    context.drawImage(source, part.x * w, part.y * h, part.size * w, part.size * h, 0, 0, canvas.width, canvas.height);
  }

  /** Put a mark on a point, or hide it where there is none or it lies outside.
   * @param {HTMLElement} mark @param {Point | null} point @param {[number, number]} size @param {any} view */
  put(mark, point, size, view) {
    const part = windowOf(view);
    const at = point && point.map((v, i) => ((v + 0.5) / size[i] - (i ? part.x : part.y)) / part.size);
    mark.hidden = !at || at.some((v) => v < 0 || v > 1);
    if (at) Object.assign(mark.style, { top: `${100 * at[0]}%`, left: `${100 * at[1]}%` });
  }

  /** The point under the pointer. @param {PointerEvent | WheelEvent} event @param {[number, number]} size @param {any} view */
  find(event, size, view) {
    const rect = this.canvas.getBoundingClientRect(), part = windowOf(view);
    const y = part.y + part.size * ((event.clientY - rect.top) / rect.height);
    const x = part.x + part.size * ((event.clientX - rect.left) / rect.width);
    const point = /** @type {Point} */ ([clamp(Math.floor(y * size[0]), 0, size[0] - 1), clamp(Math.floor(x * size[1]), 0, size[1] - 1)]);
    return { point, y, x };
  }
}

/** Whether a key is the explorer's: keys with Ctrl, Meta or Alt never are, nor Shift+Enter, which runs a cell.
 * @param {KeyboardEvent} event */
const isOurs = (event) => !(event.ctrlKey || event.metaKey || event.altKey || (event.shiftKey && event.key === "Enter"));

/** Keep JupyterLab's single-key shortcuts, such as d d, from hearing what is typed into the explorer, and no others.
 * @param {HTMLElement} root @param {KeyboardEvent} event before anyone else hears it */
function shieldKeys(root, event) {
  if (isOurs(event)) root.setAttribute("data-lm-suppress-shortcuts", "true");
  else root.removeAttribute("data-lm-suppress-shortcuts");
}

/** The static picture that the kernel put above a view in JupyterLab or a page of nbconvert. @param {HTMLElement} el
 * @returns {HTMLElement | null} */
function stillOf(el) {
  const above = /** @type {HTMLElement | null} */ (el.closest(".jp-OutputArea-child")?.previousElementSibling);
  const [, bytes] = above?.querySelector("img")?.src.split("data:image/png;base64,") ?? [];
  return bytes && atob(bytes.slice(0, 800)).includes("fakd explorer") ? /** @type {HTMLElement} */ (above) : null;
}

/** What the keys do, in sight. */
function keyHelp() {
  const keys = [["\u2190 \u2191 \u2193 \u2192", "move the query"], ["Shift", "by 8"], ["+ \u2212 0", "zoom"], ["I J K L", "move the view"],
    ["2", "second pixel"], ["Enter", "keep"], ["D", "difference"]];
  return make("p", { class: "fx-keys" }, "Keys on the image and the maps: ",
    ...keys.map(([key, what]) => make("span", { "data-key": key }, make("kbd", {}, key), ` ${what}`)));
}

/** The widget: what is on the page, and what a person does to it. */
class View {
  /** @param {Model} model @param {HTMLElement} el */
  constructor(model, el) {
    this.model = model;
    this.el = el;
    this.rows = new Rows(model);
    this.stop = new AbortController();
    /** @type {Frame[][]} */ this.maps = [];
    /** @type {Record<string, HTMLImageElement>} */ this.pictures = {};
    this.active = "query"; // the query that arrow keys and pointer move
    /** @type {Point | null} */ this.hover = null;
    /** @type {Map<number, { x: number, y: number, pan: boolean }>} */ this.touching = new Map(); // pointers that are down
    this.frames = 0;
    /** @type {Record<string, { element: HTMLElement, select: HTMLSelectElement }>} */ this.choices = {};
    /** @type {HTMLElement | null} */ this.still = null; // the static picture of this view
    this.image = new Frame("", "image");
    this.second = this.button("Second pixel", () => this.toggleSecond(), "Compare with a second query pixel (key 2)");
    this.build(el);
    this.schedule = this.schedule.bind(this);
    for (const name of EVENTS) model.on(name, this.schedule);
    this.lose = () => { this.lost = true; this.schedule(); };
    model.on("comm_live_update", this.lose); // once a view is drawn: its kernel was restarted
    this.resizes = new ResizeObserver(this.schedule);
    this.resizes.observe(this.root);
    this.schedule();
  }

  /** Take the view off the page. */
  close() {
    this.stop.abort();
    this.resizes.disconnect();
    for (const name of EVENTS) this.model.off(name, this.schedule);
    this.model.off("comm_live_update", this.lose);
    if (this.still) this.still.style.display = "";
    cancelAnimationFrame(this.pending ?? 0);
  }

  /** @param {string} name */
  get(name) { return this.model.get(name); }
  /** Change state; the host hears of it with the next frame. @param {string} name @param {any} value */
  set(name, value) {
    if (JSON.stringify(this.get(name)) === JSON.stringify(value)) return;
    this.model.set(name, value);
    if (name === "query" && this.get("step") !== null && !same(value, this.get("_info").past.query)) this.model.set("step", null);
    this.changed = true;
    this.schedule();
  }

  /** Whether a kernel listens: not on a page, nor in a notebook that became one, nor after it was restarted. */
  get live() { return this.get("_info").live && !this.lost && !document.querySelector(STORED_STATE); }

  /** Draw once before the screen's next frame, however much happens until then. */
  schedule() {
    this.pending ??= requestAnimationFrame(() => {
      this.pending = undefined;
      if (this.changed && (this.live || !this.get("_info").live)) this.model.save_changes(); // a dead kernel's model throws
      this.changed = false;
      this.draw();
    });
  }

  /** @param {EventTarget} target @param {string} event @param {(event: any) => void} callback @param {object} [options] */
  listen(target, event, callback, options = {}) {
    target.addEventListener(event, callback, { signal: this.stop.signal, ...options });
  }

  /** @param {string} label @param {() => void} act @param {string} title @param {object} [more] @returns {HTMLButtonElement} */
  button(label, act, title, more = {}) {
    const button = make("button", { type: "button", class: "fx-button", title, ...more }, label);
    this.listen(button, "click", act);
    return button;
  }

  /** A labelled choice. @param {string} label @param {(value: string) => void} act @param {string} title */
  choice(label, act, title) {
    const select = make("select", { class: "fx-select" });
    this.listen(select, "change", () => act(select.value));
    return { element: make("label", { class: "fx-choice", title }, make("span", {}, label), select), select };
  }

  /** @param {HTMLElement} el */
  build(el) {
    const choose = (/** @type {string} */ name) => (/** @type {string} */ value) => this.set(name, value);
    this.choices = {
      tap: this.choice("Tap", choose("tap"), "Where in the networks the feature maps are taken"),
      mode: this.choice("Show", choose("mode"), "Affinity, or that of a student less the teacher's"),
      colour: this.choice("Colours", choose("colour"), "Colours of the affinity; all are safe for colour-blind readers"),
      scale_max: this.choice("Affinity scale", (v) => this.set("scale_max", v ? Number(v) : null),
        "The ends of the colours of affinities. Automatic: what this tap needs. A number: the same at every tap, query and step"),
      difference_max: this.choice("\u0394 scale", (v) => this.set("difference_max", v ? Number(v) : null),
        "The ends of the colours of differences. Automatic: what this tap needs. A number: the same at every tap, query and step"),
      shown: this.choice("Image", choose("shown"), "The image on which the query is chosen"),
    };
    this.image.canvas.setAttribute("role", "application");
    this.image.canvas.setAttribute("aria-roledescription", "image with a query pixel");
    const zoom = make("div", { class: "fx-zoom", role: "group", "aria-label": "Zoom" },
      this.button("\u2212", () => this.zoom(1 / 1.5), "Zoom out (key \u2212)", { "aria-label": "Zoom out" }),
      this.button("+", () => this.zoom(1.5), "Zoom in (key +, or the wheel while the explorer has the focus)", { "aria-label": "Zoom in" }),
      this.button("Fit", () => this.set("view", [1, 0.5, 0.5]), "Show the whole image (key 0)"));
    this.own = this.chooser("Own image\u2026", "image/*", "Look at an image of your own; dropping it here does the same");
    const actions = make("div", { class: "fx-actions" }, this.second,
      this.button("Keep", () => this.keep(), "Put the query on the list (key Enter)"),
      this.button("Save PNG", () => this.savePicture(), "Save what is shown as a picture"),
      this.button("Save queries", () => this.saveQueries(), "Save the list of queries as JSON"),
      this.chooser("Load queries\u2026", ".json,application/json", "Load queries that were saved here; dropping the file here does the same"),
      this.own);
    this.buildTraining();
    this.list = make("ul", { class: "fx-list", "aria-label": "Kept queries" });
    this.grid = make("div", { class: "fx-maps" });
    this.legend = make("div", { class: "fx-legend" });
    this.readout = make("output", { class: "fx-readout", "aria-live": "off" });
    this.status = make("p", { class: "fx-status", role: "status" });
    this.spoken = make("p", { class: "fx-hidden", "aria-live": "polite" });
    const left = make("div", { class: "fx-left" }, this.image.element, zoom, actions, this.list);
    const right = make("div", { class: "fx-right" }, this.grid, this.legend, this.training, this.readout);
    this.keys = keyHelp();
    this.root = make("section", { class: "fakd-explorer", "aria-label": "Affinity explorer" },
      make("div", { class: "fx-choices" }, ...Object.values(this.choices).map((c) => c.element)),
      make("div", { class: "fx-body" }, left, right), this.keys, this.status, this.spoken);
    this.listen(window, "keydown", (event) => shieldKeys(this.root, event), { capture: true });
    this.handle(this.image);
    this.listen(this.root, "dragover", (event) => { event.preventDefault(); this.root.classList.add("fx-drop"); });
    this.listen(this.root, "dragleave", () => this.root.classList.remove("fx-drop"));
    this.listen(this.root, "drop", (event) => {
      event.preventDefault();
      event.stopPropagation();
      this.root.classList.remove("fx-drop");
      if (event.dataTransfer.files[0]) this.take(event.dataTransfer.files[0]);
    });
    el.append(this.root);
  }

  /** A button that asks for a file. @param {string} label @param {string} accept @param {string} title */
  chooser(label, accept, title) {
    const file = make("input", { type: "file", accept, class: "fx-hidden", tabindex: -1, "aria-hidden": "true", "aria-label": label });
    this.listen(file, "change", () => {
      const chosen = file.files[0];
      file.value = ""; // so that the same file can be chosen again
      if (chosen) this.take(chosen);
    });
    return make("span", {}, this.button(label, () => file.click(), title), file);
  }

  /** A slider over the moments of the training, the last of them the finished networks. */
  buildTraining() {
    this.moment = make("input", { type: "range", min: 0, step: 1, class: "fx-range", "aria-label": "Training step" });
    this.momentText = make("span");
    this.training = make("label", { class: "fx-training", title: "The students while they were trained; a run keeps this for one query pixel" },
      make("span", {}, "Training"), this.moment, this.momentText);
    this.listen(this.moment, "input", () => {
      const info = this.get("_info"), step = stepsOf(info)[this.moment.value] ?? null;
      if (step !== null) this.set("query", info.past.query);
      this.set("step", step);
    });
  }

  drawTraining() {
    const steps = stepsOf(this.get("_info")), step = this.get("step"), at = step === null ? steps.length : steps.indexOf(step);
    this.training.hidden = !steps.length;
    if (!steps.length) return;
    const said = step === null ? "finished networks" : `step ${step} of ${steps[steps.length - 1]}, at ${place(this.get("_info").past.query)}`;
    this.moment.max = steps.length;
    this.moment.value = at;
    this.moment.setAttribute("aria-valuetext", said);
    this.momentText.textContent = said;
  }

  /** Let a frame be used by mouse, touch and keyboard. @param {Frame} frame @param {string} [which] the query it belongs to */
  handle(frame, which) {
    const { canvas } = frame, find = (/** @type {any} */ event) => frame.find(event, this.rows.size, this.get("view"));
    this.listen(canvas, "pointerdown", (event) => {
      if (event.button > 1 || !this.ready) return;
      event.preventDefault();
      canvas.focus({ preventScroll: true });
      canvas.setPointerCapture(event.pointerId);
      const pan = event.button === 1 || event.altKey;
      this.touching.set(event.pointerId, { x: event.clientX, y: event.clientY, pan });
      if (which) this.active = which;
      if (!pan && this.touching.size === 1) this.set(this.active, find(event).point);
    });
    this.listen(canvas, "pointermove", (event) => {
      const before = this.touching.get(event.pointerId);
      this.hover = before || event.pointerType !== "mouse" ? null : find(event).point;
      if (!before) return this.schedule();
      if (before.pan || this.touching.size > 1) this.drag(frame, event);
      else this.set(this.active, find(event).point);
    });
    for (const name of ["pointerup", "pointercancel"]) this.listen(canvas, name, (event) => this.touching.delete(event.pointerId));
    this.listen(canvas, "pointerleave", () => { this.hover = null; this.schedule(); });
    this.listen(canvas, "wheel", (event) => {
      if (!event.ctrlKey && !this.root.contains(document.activeElement)) return; // the page scrolls until the explorer is used
      event.preventDefault();
      const { y, x } = find(event);
      this.zoom(Math.exp(-clamp(event.deltaY, -100, 100) / 250), y, x);
    }, { passive: false });
    this.listen(canvas, "keydown", (event) => this.key(event));
    this.listen(canvas, "focus", () => { if (which) this.active = which; });
  }

  /** Move the view by one pointer, or also zoom it by two. @param {Frame} frame @param {PointerEvent} event */
  drag(frame, event) {
    const rect = frame.canvas.getBoundingClientRect(), part = windowOf(this.get("view"));
    const before = /** @type {{ x: number, y: number, pan: boolean }} */ (this.touching.get(event.pointerId));
    const now = { ...before, x: event.clientX, y: event.clientY };
    const [other] = [...this.touching.entries()].filter(([id]) => id !== event.pointerId).map(([, at]) => at);
    const apart = (/** @type {{ x: number, y: number }} */ at) => other ? Math.max(Math.hypot(at.x - other.x, at.y - other.y), 1) : 1;
    const share = (other ? 0.5 : 1) * part.size;
    this.touching.set(event.pointerId, now);
    this.look(apart(now) / apart(before) / part.size, part.y + part.size / 2 - (share * (now.y - before.y)) / rect.height,
      part.x + part.size / 2 - (share * (now.x - before.x)) / rect.width);
  }

  /** Show a part of the image. @param {number} zoom @param {number} y @param {number} x the centre, as fractions */
  look(zoom, y, x) {
    const part = windowOf([zoom, y, x]);
    this.set("view", [1 / part.size, part.y + part.size / 2, part.x + part.size / 2]);
  }

  /** Zoom about a place, which stays where it is; the query, if none is given.
   * @param {number} factor @param {number} [y] @param {number} [x] as fractions */
  zoom(factor, y, x) {
    const part = windowOf(this.get("view")), query = this.get(this.active) ?? this.get("query");
    const [fy, fx] = [y ?? (query[0] + 0.5) / this.rows.size[0], x ?? (query[1] + 0.5) / this.rows.size[1]];
    const zoom = clamp(factor / part.size, 1, MOST_ZOOM), ratio = 1 / zoom / part.size;
    this.look(zoom, fy + (part.y + part.size / 2 - fy) * ratio, fx + (part.x + part.size / 2 - fx) * ratio);
  }

  /** Keys with Ctrl, Meta or Alt are the browser's and the notebook's. @param {KeyboardEvent} event */
  key(event) {
    const step = event.shiftKey ? 8 : 1, part = windowOf(this.get("view"));
    const pan = (/** @type {number} */ dy, /** @type {number} */ dx) =>
      this.look(1 / part.size, part.y + part.size * (0.5 + dy / 8), part.x + part.size * (0.5 + dx / 8));
    /** @type {Record<string, () => void>} */
    const keys = {
      ArrowUp: () => this.move(-step, 0), ArrowDown: () => this.move(step, 0), ArrowLeft: () => this.move(0, -step),
      ArrowRight: () => this.move(0, step), i: () => pan(-1, 0), k: () => pan(1, 0), j: () => pan(0, -1), l: () => pan(0, 1),
      "+": () => this.zoom(1.5), "=": () => this.zoom(1.5), "-": () => this.zoom(1 / 1.5),
      0: () => this.set("view", [1, 0.5, 0.5]), 2: () => this.toggleSecond(), Enter: () => this.keep(),
      d: () => this.choices.mode.element.hidden || this.set("mode", this.rows.different ? "similarity" : "difference"),
    };
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key; // capitals too, as they stand in sight
    if (!this.ready || !isOurs(event) || !Object.hasOwn(keys, key)) return;
    event.preventDefault();
    event.stopPropagation();
    keys[key]();
  }

  /** Move the active query; one that leaves the view takes it along. @param {number} dy @param {number} dx */
  move(dy, dx) {
    const part = windowOf(this.get("view")), [h, w] = this.rows.size, [y, x] = this.get(this.active) ?? this.get("query");
    const point = [clamp(y + dy, 0, h - 1), clamp(x + dx, 0, w - 1)];
    this.set(this.active, point);
    const at = [(point[0] + 0.5) / h, (point[1] + 0.5) / w];
    const out = [at[0] - part.y, at[1] - part.x].some((v) => v < 0 || v > part.size);
    if (out) this.look(1 / part.size, at[0], at[1]);
  }

  /** A second query pixel beside the first, or none. */
  toggleSecond() {
    const [h, w] = this.rows.size, [y, x] = this.get("query");
    const added = this.get("query2") === null;
    this.set("query2", added ? [h - 1 - y, w - 1 - x] : null);
    this.active = added ? "query2" : "query";
  }

  /** Put the active query on the list. */
  keep() {
    const point = this.get(this.active) ?? this.get("query"), list = this.get("queries");
    if (!list.some((/** @type {Point} */ kept) => same(kept, point))) this.set("queries", [...list, point]);
  }

  /** Take a file of the reader's: saved queries, or an image, whose features need the networks and so a kernel.
   * @param {File} file */
  async take(file) {
    const tell = (/** @type {string} */ words) => this.set("status", words), size = `${file.name} has ${fixed(file.size / 1e6, 1)} MB`;
    if (file.name.toLowerCase().endsWith(".json")) return tell(file.size > 1e6 ? `${size}; saved queries have less.` : this.load(await file.text(), file.name));
    if (!this.live) return tell("No kernel listens here. To look at your own image, run nbs/explore_affinity.ipynb in JupyterLab.");
    if (file.size > MOST_MB * 1e6) return tell(`${size}; at most ${MOST_MB} MB can be sent to the kernel.`);
    tell(`Sending ${file.name} to the kernel\u2026`);
    this.model.send({ kind: "image", name: file.name }, undefined, [await file.arrayBuffer()]);
  }

  /** Go where saved queries lead. @param {string} text of a file that `saveQueries` wrote @param {string} name
   * @returns {string} what became of it */
  load(text, name) {
    /** @type {any} */ let saved;
    try { saved = JSON.parse(text); } catch { return `${name} holds no JSON.`; }
    const [h, w] = this.rows.size, lists = saved !== null && typeof saved === "object" && Array.isArray(saved.queries);
    if (!lists || !Array.isArray(saved.query)) return `${name} holds no queries as they are saved here.`;
    if (saved.height !== h || saved.width !== w) return `${name} belongs to an image of ${saved.width} \u00d7 ${saved.height} positions, not ${w} \u00d7 ${h}.`;
    const { query, query2, queries, tap } = saved, asked = known({ query, query2, queries, tap }, this.get("_info"));
    for (const part of ["query", "queries"]) if (!(part in asked)) return `${name}: its ${part} lie outside the image.`;
    for (const [part, value] of Object.entries(asked)) if (part !== "tap" || this.canFetch) this.set(part, value);
    return `${name}: ${queries.length} kept ${queries.length === 1 ? "query" : "queries"} loaded.`;
  }

  /** Whether features of another tap can be had: from a kernel or from the page. */
  get canFetch() { return this.live || !this.get("_info").live; }

  /** Whether there is something to look at. */
  get ready() { return this.rows.nets.length > 0; }

  draw() {
    if (!this.root.isConnected || !this.root.clientWidth) return;
    const began = performance.now();
    this.rows.refresh();
    this.hideStill();
    this.status.textContent = this.words;
    if (!this.ready) return;
    const view = this.get("view"), size = this.rows.size;
    const points = ["query", "query2"].map((name) => this.get(name));
    if (!points[1]) this.active = "query";
    this.drawChoices();
    this.arrange(points[1] ? 2 : 1);
    this.drawImage(size, view);
    const frames = [this.image, ...this.maps.flat()];
    for (const [q, line] of this.maps.entries()) {
      const heats = this.rows.heats(points[q]);
      for (const [k, frame] of line.entries()) this.drawMap(frame, heats[k], this.rows.nets[k], points[q], view);
    }
    for (const [f, frame] of frames.entries()) {
      const line = f === 0 ? -1 : Math.floor((f - 1) / this.rows.nets.length);
      frame.marks.forEach((mark, i) => frame.put(mark, line === -1 || line === i ? points[i] : null, size, view));
      frame.put(frame.aim, this.hover, size, view);
    }
    this.drawLegend();
    this.drawTraining();
    this.drawWords(points);
    Object.assign(this.root.dataset, { frame: ++this.frames, query: points[0].join(), tap: this.rows.source.tap });
    this.root.dataset.ms = (performance.now() - began).toFixed(1);
  }

  /** What is said below: a message, or that the kernel owes or cannot give something. */
  get words() {
    const tap = this.get("tap");
    if (!this.canFetch) return "The kernel that gave these features is gone. The view stays usable at this tap; run its cell again for the rest.";
    return this.ready && this.rows.source.tap !== tap ? `Waiting for the features of ${tap}\u2026` : this.get("status");
  }

  /** Hide the static picture that the notebook keeps above this view, while there is the view. */
  hideStill() {
    this.still ??= stillOf(this.el);
    if (this.still) this.still.style.display = "none";
  }

  /** The scales to choose from. @param {boolean} difference @returns {[string, string][]} value and text */
  scaleChoices(difference) {
    const { high, low } = this.rows.scale(difference), scales = Object.values(this.get("_info").scales);
    const chosen = this.get(difference ? "difference_max" : "scale_max"), all = Math.max(...scales.map((/** @type {any} */ needs) => needs[1]));
    const tops = new Set([...this.get("_info").tops.filter((/** @type {number} */ step) => difference || step <= 1), ...(chosen ? [high] : [])]);
    const automatic = `automatic${chosen ? "" : `: ${fixed(low).replace(/\.?0+$/, "")} to ${high}`}`;
    return [["", automatic], ...[...tops].sort((a, b) => b - a).map((v) => /** @type {[string, string]} */ (
      [String(v), (difference ? `\u00b1${v}` : String(v)) + (difference && v === all ? ", serves all taps" : "")]))];
  }

  drawChoices() {
    const info = this.get("_info");
    /** @type {Record<string, [string, string][]>} */
    const options = {
      tap: info.taps.map((/** @type {string} */ tap) => [tap, tap]),
      colour: Object.keys(info.colours).filter((c) => c !== "difference").map((c) => [c, c]),
      mode: [["similarity", "affinity"], ["difference", "difference"]],
      scale_max: this.scaleChoices(false), difference_max: this.scaleChoices(true),
      shown: info.images.map((/** @type {any} */ image) => [image.key, image.label]),
    };
    for (const [name, { select, element }] of Object.entries(this.choices)) {
      const key = JSON.stringify(options[name]);
      if (select.dataset.options !== key) select.replaceChildren(...options[name].map(([value, text]) => make("option", { value }, text)));
      select.dataset.options = key;
      select.value = String(this.get(name) ?? "");
      element.hidden = name === "mode" ? !this.rows.nets.some((net) => this.rows.comparable(net)) : name === "difference_max" && !this.rows.different;
    }
    this.choices.tap.select.disabled = !this.canFetch;
    this.keys.querySelector("[data-key=D]").hidden = this.choices.mode.element.hidden;
    this.own.hidden = !this.live;
    this.second.setAttribute("aria-pressed", String(this.get("query2") !== null));
  }

  /** Have one frame a network and query. @param {number} queries */
  arrange(queries) {
    const key = JSON.stringify([queries, this.rows.nets.map((net) => net.name)]);
    if (this.grid.dataset.key === key) return;
    this.grid.dataset.key = key;
    this.root.style.setProperty("--fx-nets", String(this.rows.nets.length));
    this.touching.clear(); // a pointer that is down on a frame that goes is never seen to rise
    this.maps = ["query", "query2"].slice(0, queries).map((which) => this.rows.nets.map((net) => {
      const frame = new Frame(net.name, "map");
      this.handle(frame, which);
      return frame;
    }));
    this.grid.replaceChildren(...this.maps.map((line, q) => make("div",
      { class: "fx-line", role: "group", "aria-label": `Query ${q + 1}` }, ...line.map((frame) => frame.element))));
  }

  /** @param {[number, number]} size @param {any} view */
  drawImage(size, view) {
    const images = this.get("_info").images;
    const chosen = images.find((/** @type {any} */ image) => image.key === this.get("shown")) ?? images[0];
    let picture = this.pictures[chosen.src];
    if (!picture) {
      picture = this.pictures[chosen.src] = new Image();
      this.listen(picture, "load", this.schedule);
      picture.src = chosen.src;
    }
    this.image.title.textContent = chosen.label;
    const { naturalWidth: w, naturalHeight: h } = picture;
    if (picture.complete && w) this.image.draw(picture, h, w, view, true);
    this.image.canvas.setAttribute("aria-label",
      `${chosen.label}, ${size[1]} by ${size[0]} positions. Query at ${place(this.get(this.active))}. `
      + "Arrow keys move it, with Shift by 8; I, J, K and L move the view; plus, minus and 0 zoom, 2 adds a second query, Enter keeps one.");
  }

  /** @param {Frame} frame @param {Heat} heat @param {Net} net @param {Point} point @param {any} view */
  drawMap(frame, heat, net, point, view) {
    frame.draw(colourMap(heat, net.h, net.w), net.h, net.w, view, false);
    frame.heat = heat;
    frame.canvas.dataset.low = String(heat.scale.low);
    frame.canvas.dataset.high = String(heat.scale.high);
    frame.title.textContent = heat.label;
    frame.note.textContent = heat.note;
    const what = heat.label.endsWith("\u0394") ? "affinity less the teacher's, of every position" : "affinity of every position";
    frame.canvas.setAttribute("aria-label", `${heat.label}: ${what} to ${place(point)}, ${heat.note}.`);
  }

  /** The scales in use: what they measure, their colours, and their ends in words, which say where a map goes beyond.
   * @returns {{ label: string, scale: Scale, ends: string[] }[]} */
  legends() {
    const heats = this.maps.flat().map((frame) => /** @type {Heat} */ (frame.heat));
    return [false, true].filter((difference) => !difference || this.rows.different).flatMap((difference) => {
      const scale = this.rows.scale(difference), shown = heats.filter((heat) => heat.scale.colours === scale.colours);
      if (!shown.length) return [];
      const beyond = (/** @type {(v: number) => boolean} */ test) => shown.some((heat) => heat.values.some(test));
      const say = (/** @type {number} */ v) => String(v).replace("-", "\u2212");
      return [{ label: difference ? "\u0394 affinity, student less teacher" : "Affinity (cosine)", scale, ends: [
        (beyond((v) => v < scale.low - 1e-3) ? "\u2264 " : "") + say(scale.low), (beyond((v) => v > scale.high + 1e-3) ? "\u2265 " : "") + say(scale.high)] }];
    });
  }

  drawLegend() {
    this.legend.replaceChildren(...this.legends().map(({ label, scale: { colours }, ends }) => {
      const stops = Array.from({ length: 17 }, (_, i) => css(colours, i / 16)), bar = make("i", { class: "fx-bar" });
      bar.style.background = `linear-gradient(to right, ${stops.join()})`;
      return make("span", { class: "fx-scale" }, make("span", {}, label), make("b", {}, ends[0]), bar, make("b", {}, ends[1]));
    }));
  }

  /** @param {(Point | null)[]} points */
  drawWords([query, second]) {
    const first = /** @type {Point} */ (query), other = this.hover ?? second;
    this.readout.textContent = other
      ? `${place(first)} and ${place(other)}: ${this.rows.sentence(first, other)}`
      : `Query at ${place(first)}. ${matchMedia("(hover: none)").matches ? "A second pixel reads the values there" : "Point at a map to read its values"}.`;
    clearTimeout(this.speaking);
    this.speaking = setTimeout(() => { // not each pixel of a long way
      const more = second ? `, second at ${place(second)}: ${this.rows.sentence(first, second)}` : "";
      this.spoken.textContent = `Query at ${place(first)}${more}`;
    }, 600);
    const key = JSON.stringify([this.get("queries"), query]);
    if (this.list.dataset.key === key) return;
    this.list.dataset.key = key;
    this.list.replaceChildren(...this.get("queries").map((/** @type {Point} */ point) => {
      const kind = { type: "button", class: "fx-chip" };
      const go = make("button", { ...kind, title: "Go there", "aria-current": same(point, query) ? "true" : null }, place(point));
      const drop = make("button", { ...kind, title: "Remove", "aria-label": `Remove ${place(point)}` }, "\u00d7");
      go.onclick = () => this.set("query", point);
      drop.onclick = () => this.set("queries", this.get("queries").filter((/** @type {Point} */ kept) => !same(kept, point)));
      return make("li", {}, go, drop);
    }));
  }

  /** The queries as JSON: those kept, and where the view is now. */
  saveQueries() {
    const [h, w] = this.rows.size, info = this.get("_info");
    const saved = { title: info.title, height: h, width: w, tap: this.get("tap"), networks: this.rows.nets.map((net) => net.name),
      query: this.get("query"), query2: this.get("query2"), queries: this.get("queries") };
    download(new Blob([JSON.stringify(saved, null, 1) + "\n"], { type: "application/json" }), "queries.json");
  }

  /** What is shown, with titles and scales, as a PNG of at least 320 pixels a map. */
  savePicture() {
    const style = getComputedStyle(this.root), side = 320, gap = 24, head = 30, foot = 26;
    const lines = this.maps.length, [h, w] = this.rows.size, tall = Math.round((side * h) / w);
    const width = gap + (side + gap) * (1 + this.rows.nets.length), height = gap + lines * (tall + head + foot) + 3 * head;
    const canvas = make("canvas", { width, height });
    const context = canvas.getContext("2d");
    const write = (/** @type {string} */ text, /** @type {number} */ x, /** @type {number} */ y, dim = false) => {
      context.font = `${dim ? 15 : 17}px ${style.fontFamily}`;
      context.fillStyle = style.getPropertyValue(dim ? "--fx-muted" : "--fx-ink");
      context.fillText(text, x, y);
    };
    context.fillStyle = style.getPropertyValue("--fx-paper");
    context.fillRect(0, 0, canvas.width, canvas.height);
    const points = [this.get("query"), this.get("query2")], part = windowOf(this.get("view"));
    this.maps.forEach((line, q) => [...(q ? [] : [this.image]), ...line].forEach((frame, k) => {
      const x = gap + (k + (q ? 1 : 0)) * (side + gap), y = gap + q * (tall + head + foot) + head;
      context.imageSmoothingEnabled = frame === this.image;
      context.drawImage(frame.canvas, x, y, side, tall);
      write(frame.title.textContent, x, y - 9);
      write(frame.note.textContent, x, y + tall + 19, true);
      points.forEach((point, i) => {
        if (!point || (frame !== this.image && i !== q)) return;
        const at = [((point[0] + 0.5) / h - part.y) / part.size, ((point[1] + 0.5) / w - part.x) / part.size];
        if (at.some((v) => v < 0 || v > 1)) return;
        for (const [colour, wide] of /** @type {[string, number][]} */ ([["#000", 5], ["#fff", 2.5]])) {
          Object.assign(context, { strokeStyle: colour, lineWidth: wide });
          context.beginPath();
          if (i) context.rect(x + at[1] * side - 7, y + at[0] * tall - 7, 14, 14);
          else context.arc(x + at[1] * side, y + at[0] * tall, 8, 0, 7);
          context.stroke();
        }
      });
    }));
    const base = canvas.height - 2 * head;
    write(`${this.get("tap")}, query at ${place(points[0])}` + (points[1] ? ` and ${place(points[1])}` : ""), gap, base + 42, true);
    this.legends().forEach(({ label, scale, ends }, i) => {
      const x = gap + i * 1.5 * (side + gap);
      for (let s = 0; s < 140; s++) {
        context.fillStyle = css(scale.colours, s / 139);
        context.fillRect(x + s, base, 1.5, 12);
      }
      write(`${label}, ${ends[0]} to ${ends[1]}`, x + 152, base + 11, true);
    });
    canvas.toBlob((/** @type {Blob} */ blob) => download(blob, "affinity.png"), "image/png");
  }
}

/** @param {{ model: Model, el: HTMLElement }} host @returns {() => void} what takes the view off the page */
function render({ model, el }) {
  const view = new View(model, el);
  return () => view.close();
}

export default { render };
