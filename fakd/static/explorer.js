// @ts-check
// The affinity explorer, for anywidget and for the static page alike. It holds unit feature maps of every network
// and computes rows of the affinity itself, so that a click asks nobody for anything. Three modules: what is computed
// (explorer.rows.js), what is drawn and pointed at (explorer.frames.js), and here what is chosen, and the view of it all.
// Who shows it joins them to one script (`explorer_script` in fakd/look/page.py), so a name stands for one thing in all three.

/** @import { Heat, Model, Net, Point } from "./explorer.rows.js" */
import { Frame, Hand, colourMap, css, download, isOurs, make, pictureOf } from "./explorer.frames.js";
import { Rows, SHARED, fixed, known, place, same, stepsOf } from "./explorer.rows.js";

const EVENTS = [...SHARED, "status", "_info", "_data"].map((name) => `change:${name}`);
const STORED_STATE = 'script[type="application/vnd.jupyter.widget-state+json"]'; // on a page that nbconvert made
const MOST_MB = 8; // of an image of one's own: a notebook server passes no message of more than 10

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

/** What is chosen beside the pictures: taps, colours, zoom, files, and the moment of the training. */
class Controls {
  /** @param {View} view whose state they change */
  constructor(view) {
    this.view = view;
    const choose = (/** @type {string} */ name) => (/** @type {string} */ value) => view.set(name, value);
    /** @type {Record<string, { element: HTMLElement, select: HTMLSelectElement }>} */
    this.choices = {
      tap: this.choice("Tap", choose("tap"), "Where in the networks the feature maps are taken"),
      mode: this.choice("Show", choose("mode"), "Affinity, or that of a student less the teacher's"),
      colour: this.choice("Colours", choose("colour"), "Colours of the affinity; all are safe for colour-blind readers"),
      affinity_max: this.choice("Affinity colour bar", (v) => view.set("affinity_max", v ? Number(v) : null),
        "The ends of the colour bar of affinities. Automatic: what this tap needs. A number: the same at every tap, query and step"),
      difference_max: this.choice("\u0394 colour bar", (v) => view.set("difference_max", v ? Number(v) : null),
        "The ends of the colour bar of differences. Automatic: what this tap needs. A number: the same at every tap, query and step"),
      shown: this.choice("Image", choose("shown"), "The image on which the query is chosen"),
    };
    this.zoom = make("div", { class: "fx-zoom", role: "group", "aria-label": "Zoom" },
      this.button("\u2212", () => view.hand.zoom(1 / 1.5), "Zoom out (key \u2212)", { "aria-label": "Zoom out" }),
      this.button("+", () => view.hand.zoom(1.5), "Zoom in (key +, or the wheel while the explorer has the focus)", { "aria-label": "Zoom in" }),
      this.button("Fit", () => view.set("view", [1, 0.5, 0.5]), "Show the whole image (key 0)"));
    this.own = this.chooser("Own image\u2026", "image/*", "Look at an image of your own; dropping it here does the same");
    this.second = this.button("Second pixel", () => view.hand.toggleSecond(), "Compare with a second query pixel (key 2)");
    this.actions = make("div", { class: "fx-actions" }, this.second,
      this.button("Keep", () => view.hand.keep(), "Put the query on the list (key Enter)"),
      this.button("Save PNG", () => view.savePicture(), "Save what is shown as a picture"),
      this.button("Save queries", () => view.saveQueries(), "Save the list of queries as JSON"),
      this.chooser("Load queries\u2026", ".json,application/json", "Load queries that were saved here; dropping the file here does the same"),
      this.own);
    this.buildTraining(view);
  }

  /** @param {string} label @param {() => void} act @param {string} title @param {object} [more] @returns {HTMLButtonElement} */
  button(label, act, title, more = {}) {
    const button = make("button", { type: "button", class: "fx-button", title, ...more }, label);
    this.view.listen(button, "click", act);
    return button;
  }

  /** A labelled choice. @param {string} label @param {(value: string) => void} act @param {string} title */
  choice(label, act, title) {
    const select = make("select", { class: "fx-select" });
    this.view.listen(select, "change", () => act(select.value));
    return { element: make("label", { class: "fx-choice", title }, make("span", {}, label), select), select };
  }

  /** A button that asks for a file. @param {string} label @param {string} accept @param {string} title */
  chooser(label, accept, title) {
    const file = make("input", { type: "file", accept, class: "fx-hidden", tabindex: -1, "aria-hidden": "true", "aria-label": label });
    this.view.listen(file, "change", () => {
      const chosen = file.files[0];
      file.value = ""; // so that the same file can be chosen again
      if (chosen) this.view.take(chosen);
    });
    return make("span", {}, this.button(label, () => file.click(), title), file);
  }

  /** A slider over the moments of the training, the last of them the finished networks. @param {View} view */
  buildTraining(view) {
    this.moment = make("input", { type: "range", min: 0, step: 1, class: "fx-range", "aria-label": "Training step" });
    this.momentText = make("span");
    this.training = make("label", { class: "fx-training", title: "The students while they were trained; a run keeps this for one query pixel" },
      make("span", {}, "Training"), this.moment, this.momentText);
    view.listen(this.moment, "input", () => {
      const info = view.get("_info"), step = stepsOf(info)[this.moment.value] ?? null;
      if (step !== null) view.set("query", info.past.query);
      view.set("step", step);
    });
  }

  drawTraining() {
    const { view } = this, steps = stepsOf(view.get("_info")), step = view.get("step"), at = step === null ? steps.length : steps.indexOf(step);
    this.training.hidden = !steps.length;
    if (!steps.length) return;
    const said = step === null ? "finished networks" : `step ${step} of ${steps[steps.length - 1]}, at ${place(view.get("_info").past.query)}`;
    this.moment.max = steps.length;
    this.moment.value = at;
    this.moment.setAttribute("aria-valuetext", said);
    this.momentText.textContent = said;
  }

  /** The ends of a colour bar to choose from. @param {boolean} difference @returns {[string, string][]} value and text */
  ends(difference) {
    const { view } = this, { high, low } = view.rows.bar(difference), bars = Object.values(view.get("_info").bars);
    const chosen = view.get(difference ? "difference_max" : "affinity_max"), all = Math.max(...bars.map((/** @type {any} */ needs) => needs[1]));
    const tops = new Set([...view.get("_info").tops.filter((/** @type {number} */ step) => difference || step <= 1), ...(chosen ? [high] : [])]);
    const automatic = `automatic${chosen ? "" : `: ${fixed(low).replace(/\.?0+$/, "")} to ${high}`}`;
    return [["", automatic], ...[...tops].sort((a, b) => b - a).map((v) => /** @type {[string, string]} */ (
      [String(v), (difference ? `\u00b1${v}` : String(v)) + (difference && v === all ? ", serves all taps" : "")]))];
  }

  draw() {
    const { view } = this, info = view.get("_info");
    /** @type {Record<string, [string, string][]>} */
    const options = {
      tap: info.taps.map((/** @type {string} */ tap) => [tap, tap]),
      colour: Object.keys(info.colours).map((c) => [c, c]),
      mode: ["affinity", "difference"].map((mode) => [mode, mode]),
      affinity_max: this.ends(false), difference_max: this.ends(true),
      shown: info.images.map((/** @type {any} */ image) => [image.key, image.label]),
    };
    for (const [name, { select, element }] of Object.entries(this.choices)) {
      const key = JSON.stringify(options[name]);
      if (select.dataset.options !== key) select.replaceChildren(...options[name].map(([value, text]) => make("option", { value }, text)));
      select.dataset.options = key;
      select.value = String(view.get(name) ?? "");
      element.hidden = name === "mode" ? !view.rows.comparing : name === "difference_max" && !view.rows.different;
    }
    this.choices.tap.select.disabled = !view.canFetch;
    /** @type {any} */ (view.keys.querySelector("[data-key=D]")).hidden = this.choices.mode.element.hidden;
    this.own.hidden = !view.live;
    this.second.setAttribute("aria-pressed", String(view.get("query2") !== null));
    this.drawTraining();
  }
}

/** The widget: its state, and what is on the page. */
class View {
  /** @param {Model} model @param {HTMLElement} el */
  constructor(model, el) {
    this.model = model;
    this.el = el;
    this.rows = new Rows(model);
    this.stop = new AbortController();
    /** @type {Frame[][]} */ this.maps = [];
    /** @type {Record<string, HTMLImageElement>} */ this.pictures = {};
    this.frames = 0;
    /** @type {HTMLElement | null} */ this.still = null; // the static picture of this view
    this.image = new Frame("", "image");
    this.schedule = this.schedule.bind(this);
    this.hand = new Hand(this);
    this.controls = new Controls(this);
    this.build(el);
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

  /** @param {HTMLElement} el */
  build(el) {
    const { controls } = this;
    this.image.canvas.setAttribute("role", "application");
    this.image.canvas.setAttribute("aria-roledescription", "image with a query pixel");
    this.list = make("ul", { class: "fx-list", "aria-label": "Kept queries" });
    this.grid = make("div", { class: "fx-maps" });
    this.legend = make("div", { class: "fx-legend" });
    this.readout = make("output", { class: "fx-readout", "aria-live": "off" });
    this.status = make("p", { class: "fx-status", role: "status" });
    this.spoken = make("p", { class: "fx-hidden", "aria-live": "polite" });
    const left = make("div", { class: "fx-left" }, this.image.element, controls.zoom, controls.actions, this.list);
    const right = make("div", { class: "fx-right" }, this.grid, this.legend, controls.training, this.readout);
    this.keys = keyHelp();
    this.root = make("section", { class: "fakd-explorer", "aria-label": "Affinity explorer" },
      make("div", { class: "fx-choices" }, ...Object.values(controls.choices).map((c) => c.element)),
      make("div", { class: "fx-body" }, left, right), this.keys, this.status, this.spoken);
    this.listen(window, "keydown", (event) => shieldKeys(this.root, event), { capture: true });
    this.hand.reach(this.image);
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
    if (!points[1]) this.hand.active = "query";
    this.controls.draw();
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
      frame.put(frame.aim, this.hand.hover, size, view);
    }
    this.drawLegend();
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

  /** Have one frame a network and query. @param {number} queries */
  arrange(queries) {
    const key = JSON.stringify([queries, this.rows.nets.map((net) => net.name)]);
    if (this.grid.dataset.key === key) return;
    this.grid.dataset.key = key;
    this.root.style.setProperty("--fx-nets", String(this.rows.nets.length));
    this.hand.touching.clear(); // a pointer that is down on a frame that goes is never seen to rise
    this.maps = ["query", "query2"].slice(0, queries).map((which) => this.rows.nets.map((net) => {
      const frame = new Frame(net.name, "map");
      this.hand.reach(frame, which);
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
      `${chosen.label}, ${size[1]} by ${size[0]} positions. Query at ${place(this.hand.point)}. `
      + "Arrow keys move it, with Shift by 8; I, J, K and L move the view; plus, minus and 0 zoom, 2 adds a second query, Enter keeps one.");
  }

  /** @param {Frame} frame @param {Heat} heat @param {Net} net @param {Point} point @param {any} view */
  drawMap(frame, heat, net, point, view) {
    frame.draw(colourMap(heat, net.h, net.w), net.h, net.w, view, false);
    frame.heat = heat;
    frame.canvas.dataset.low = String(heat.bar.low);
    frame.canvas.dataset.high = String(heat.bar.high);
    frame.title.textContent = heat.label;
    frame.note.textContent = heat.note;
    const what = heat.difference ? "affinity less the teacher's, of every position" : "affinity of every position";
    frame.canvas.setAttribute("aria-label", `${heat.label}: ${what} to ${place(point)}, ${heat.note}.`);
  }

  /** The colour bars of the maps that are shown. */
  get legends() { return this.rows.legends(this.maps.flat().map((frame) => /** @type {Heat} */ (frame.heat))); }

  drawLegend() {
    this.legend.replaceChildren(...this.legends.map(({ label, bar: { colours }, ends }) => {
      const stops = Array.from({ length: 17 }, (_, i) => css(colours, i / 16)), strip = make("i", { class: "fx-bar" });
      strip.style.background = `linear-gradient(to right, ${stops.join()})`;
      return make("span", { class: "fx-colours" }, make("span", {}, label), make("b", {}, ends[0]), strip, make("b", {}, ends[1]));
    }));
  }

  /** @param {(Point | null)[]} points */
  drawWords([query, second]) {
    const first = /** @type {Point} */ (query), other = this.hand.hover ?? second;
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

  savePicture() {
    const [query, second] = ["query", "query2"].map((name) => this.get(name));
    const words = `${this.get("tap")}, query at ${place(query)}` + (second ? ` and ${place(second)}` : "");
    const picture = pictureOf(this.root, { size: this.rows.size, view: this.get("view"), points: [query, second],
      image: this.image, maps: this.maps, legends: this.legends, words });
    picture.toBlob((/** @type {Blob} */ blob) => download(blob, "affinity.png"), "image/png");
  }
}

/** @param {{ model: Model, el: HTMLElement }} host @returns {() => void} what takes the view off the page */
function render({ model, el }) {
  const view = new View(model, el);
  return () => view.close();
}

export default { render };
