// @ts-check
// What the explorer draws, one frame an image or a heat map, and what a hand does with it.

/** @import { Bar, Heat, Legend, Point } from "./explorer.rows.js" */
import { MOST_ZOOM, clamp, place, same } from "./explorer.rows.js";

/** Make an element.
 * @param {string} tag @param {Record<string, any>} [attributes] @param {...(Node | string)} children @returns {any} */
export function make(tag, attributes = {}, ...children) {
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
export function download(blob, name) {
  const url = URL.createObjectURL(blob);
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

/** A colour for CSS. @param {Uint8ClampedArray} colours @param {number} share where on the bar, 0 to 1 */
export const css = (colours, share) => `rgb(${colours.slice(4 * Math.round(share * 255)).slice(0, 3).join()})`;

/** A heat map, one pixel a position.
 * @param {Heat} heat @param {number} h @param {number} w @returns {HTMLCanvasElement} */
export function colourMap(heat, h, w) {
  const canvas = make("canvas", { width: w, height: h }), context = canvas.getContext("2d");
  const image = context.createImageData(w, h), { low, high, colours } = heat.bar;
  for (let p = 0; p < h * w; p++) {
    const i = 4 * Math.round(clamp((heat.values[p] - low) / (high - low), 0, 1) * 255);
    for (let k = 0; k < 4; k++) image.data[4 * p + k] = colours[i + k];
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

/** The part of the image that a view shows, as fractions: its corner and its size.
 * @param {[number, number, number]} view zoom, and row and column of the centre as fractions */
export function windowOf([zoom, y, x]) {
  const size = 1 / clamp(zoom, 1, MOST_ZOOM);
  return { y: clamp(y - size / 2, 0, 1 - size), x: clamp(x - size / 2, 0, 1 - size), size };
}

/** A canvas with marks on it, that shows the part of an image which the view names. */
export class Frame {
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

/** What is shown, with titles and colour bars, as a picture of at least 320 pixels a map.
 * @param {HTMLElement} root whose colours and letters it has
 * @param {{ size: [number, number], view: any, points: (Point | null)[], image: Frame, maps: Frame[][], legends: Legend[], words: string }} shown
 * @returns {HTMLCanvasElement} */
export function pictureOf(root, { size: [h, w], view, points, image, maps, legends, words }) {
  const style = getComputedStyle(root), side = 320, gap = 24, head = 30, foot = 26;
  const lines = maps.length, tall = Math.round((side * h) / w);
  const width = gap + (side + gap) * (1 + maps[0].length), height = gap + lines * (tall + head + foot) + 3 * head;
  const canvas = make("canvas", { width, height });
  const context = canvas.getContext("2d");
  const write = (/** @type {string} */ text, /** @type {number} */ x, /** @type {number} */ y, dim = false) => {
    context.font = `${dim ? 15 : 17}px ${style.fontFamily}`;
    context.fillStyle = style.getPropertyValue(dim ? "--fx-muted" : "--fx-ink");
    context.fillText(text, x, y);
  };
  context.fillStyle = style.getPropertyValue("--fx-paper");
  context.fillRect(0, 0, canvas.width, canvas.height);
  const part = windowOf(view);
  maps.forEach((line, q) => [...(q ? [] : [image]), ...line].forEach((frame, k) => {
    const x = gap + (k + (q ? 1 : 0)) * (side + gap), y = gap + q * (tall + head + foot) + head;
    context.imageSmoothingEnabled = frame === image;
    context.drawImage(frame.canvas, x, y, side, tall);
    write(frame.title.textContent, x, y - 9);
    write(frame.note.textContent, x, y + tall + 19, true);
    points.forEach((point, i) => {
      if (!point || (frame !== image && i !== q)) return;
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
  write(words, gap, base + 42, true);
  legends.forEach(({ label, bar, ends }, i) => {
    const x = gap + i * 1.5 * (side + gap);
    for (let s = 0; s < 140; s++) {
      context.fillStyle = css(bar.colours, s / 139);
      context.fillRect(x + s, base, 1.5, 12);
    }
    write(`${label}, ${ends[0]} to ${ends[1]}`, x + 152, base + 11, true);
  });
  return canvas;
}

/** Whether a key is the explorer's: keys with Ctrl, Meta or Alt never are, nor Shift+Enter, which runs a cell.
 * @param {KeyboardEvent} event */
export const isOurs = (event) => !(event.ctrlKey || event.metaKey || event.altKey || (event.shiftKey && event.key === "Enter"));

/** What a hand does with pointer, wheel and keys: it moves the queries and the part of the image that is shown. */
export class Hand {
  /** @param {any} view whose state it changes */
  constructor(view) {
    this.view = view;
    this.active = "query"; // the query that arrow keys and pointer move
    /** @type {Point | null} */ this.hover = null; // where a mouse points
    /** @type {Map<number, { x: number, y: number, pan: boolean }>} */ this.touching = new Map(); // pointers that are down
  }

  /** The active query. @returns {Point} */
  get point() { return this.view.get(this.active) ?? this.view.get("query"); }

  /** Let a frame be used by mouse, touch and keyboard. @param {Frame} frame @param {string} [which] the query it belongs to */
  reach(frame, which) {
    const { view } = this, { canvas } = frame;
    const find = (/** @type {any} */ event) => frame.find(event, view.rows.size, view.get("view"));
    view.listen(canvas, "pointerdown", (event) => {
      if (event.button > 1 || !view.ready) return;
      event.preventDefault();
      canvas.focus({ preventScroll: true });
      canvas.setPointerCapture(event.pointerId);
      const pan = event.button === 1 || event.altKey;
      this.touching.set(event.pointerId, { x: event.clientX, y: event.clientY, pan });
      if (which) this.active = which;
      if (!pan && this.touching.size === 1) view.set(this.active, find(event).point);
    });
    view.listen(canvas, "pointermove", (event) => {
      const before = this.touching.get(event.pointerId);
      this.hover = before || event.pointerType !== "mouse" ? null : find(event).point;
      if (!before) return view.schedule();
      if (before.pan || this.touching.size > 1) this.drag(frame, event);
      else view.set(this.active, find(event).point);
    });
    for (const name of ["pointerup", "pointercancel"]) view.listen(canvas, name, (event) => this.touching.delete(event.pointerId));
    view.listen(canvas, "pointerleave", () => { this.hover = null; view.schedule(); });
    view.listen(canvas, "wheel", (event) => {
      if (!event.ctrlKey && !view.root.contains(document.activeElement)) return; // the page scrolls until the explorer is used
      event.preventDefault();
      const { y, x } = find(event);
      this.zoom(Math.exp(-clamp(event.deltaY, -100, 100) / 250), y, x);
    }, { passive: false });
    view.listen(canvas, "keydown", (event) => this.key(event));
    view.listen(canvas, "focus", () => { if (which) this.active = which; });
  }

  /** Move the view by one pointer, or also zoom it by two. @param {Frame} frame @param {PointerEvent} event */
  drag(frame, event) {
    const rect = frame.canvas.getBoundingClientRect(), part = windowOf(this.view.get("view"));
    const before = /** @type {{ x: number, y: number, pan: boolean }} */ (this.touching.get(event.pointerId));
    const now = { ...before, x: event.clientX, y: event.clientY };
    const [other] = [...this.touching.entries()].filter(([id]) => id !== event.pointerId).map(([, at]) => at);
    const apart = (/** @type {{ x: number, y: number }} */ at) => other ? Math.max(Math.hypot(at.x - other.x, at.y - other.y), 1) : 1;
    const share = (other ? 0.5 : 1) * part.size;
    this.touching.set(event.pointerId, now);
    this.frameAt(apart(now) / apart(before) / part.size, part.y + part.size / 2 - (share * (now.y - before.y)) / rect.height,
      part.x + part.size / 2 - (share * (now.x - before.x)) / rect.width);
  }

  /** Show a part of the image. @param {number} zoom @param {number} y @param {number} x the centre, as fractions */
  frameAt(zoom, y, x) {
    const part = windowOf([zoom, y, x]);
    this.view.set("view", [1 / part.size, part.y + part.size / 2, part.x + part.size / 2]);
  }

  /** Zoom about a place, which stays where it is; the query, if none is given.
   * @param {number} factor @param {number} [y] @param {number} [x] as fractions */
  zoom(factor, y, x) {
    const { view } = this, part = windowOf(view.get("view")), [h, w] = view.rows.size, [row, column] = this.point;
    const [fy, fx] = [y ?? (row + 0.5) / h, x ?? (column + 0.5) / w];
    const zoom = clamp(factor / part.size, 1, MOST_ZOOM), ratio = 1 / zoom / part.size;
    this.frameAt(zoom, fy + (part.y + part.size / 2 - fy) * ratio, fx + (part.x + part.size / 2 - fx) * ratio);
  }

  /** Keys with Ctrl, Meta or Alt are the browser's and the notebook's. @param {KeyboardEvent} event */
  key(event) {
    const { view } = this, step = event.shiftKey ? 8 : 1, part = windowOf(view.get("view"));
    const pan = (/** @type {number} */ dy, /** @type {number} */ dx) =>
      this.frameAt(1 / part.size, part.y + part.size * (0.5 + dy / 8), part.x + part.size * (0.5 + dx / 8));
    /** @type {Record<string, () => void>} */
    const keys = {
      ArrowUp: () => this.move(-step, 0), ArrowDown: () => this.move(step, 0), ArrowLeft: () => this.move(0, -step),
      ArrowRight: () => this.move(0, step), i: () => pan(-1, 0), k: () => pan(1, 0), j: () => pan(0, -1), l: () => pan(0, 1),
      "+": () => this.zoom(1.5), "=": () => this.zoom(1.5), "-": () => this.zoom(1 / 1.5),
      0: () => view.set("view", [1, 0.5, 0.5]), 2: () => this.toggleSecond(), Enter: () => this.keep(),
      d: () => view.rows.comparing && view.set("mode", view.rows.different ? "affinity" : "difference"),
    };
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key; // capitals too, as they stand in sight
    if (!view.ready || !isOurs(event) || !Object.hasOwn(keys, key)) return;
    event.preventDefault();
    event.stopPropagation();
    keys[key]();
  }

  /** Move the active query; one that leaves the view takes it along. @param {number} dy @param {number} dx */
  move(dy, dx) {
    const { view } = this, part = windowOf(view.get("view")), [h, w] = view.rows.size, [y, x] = this.point;
    const point = [clamp(y + dy, 0, h - 1), clamp(x + dx, 0, w - 1)];
    view.set(this.active, point);
    const at = [(point[0] + 0.5) / h, (point[1] + 0.5) / w];
    const out = [at[0] - part.y, at[1] - part.x].some((v) => v < 0 || v > part.size);
    if (out) this.frameAt(1 / part.size, at[0], at[1]);
  }

  /** A second query pixel beside the first, or none. */
  toggleSecond() {
    const { view } = this, [h, w] = view.rows.size, [y, x] = view.get("query");
    const added = view.get("query2") === null;
    view.set("query2", added ? [h - 1 - y, w - 1 - x] : null);
    this.active = added ? "query2" : "query";
  }

  /** Put the active query on the list. */
  keep() {
    const { view, point } = this, list = view.get("queries");
    if (!list.some((/** @type {Point} */ kept) => same(kept, point))) view.set("queries", [...list, point]);
  }
}
