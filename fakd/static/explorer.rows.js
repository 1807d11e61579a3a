// @ts-check
// What the explorer computes: rows of the affinity from the unit feature maps of every network, the colour bars that they
// need, and what a file or an address may ask of a view. Nothing here knows of a page.

/**
 * What a host offers: anywidget's model, or the stand-in of the static page.
 * @typedef {{ get(name: string): any, set(name: string, value: any): void, save_changes(): void,
 *   on(event: string, callback: () => void): void, off(event: string, callback: () => void): void,
 *   send(content: object, callbacks?: object, buffers?: ArrayBuffer[]): void }} Model
 */
/** @typedef {{ key: string, name: string, c: number, h: number, w: number, unit: Float32Array, steps: number[], past: DataView }} Net
 *   a network's unit maps, c * h * w; and where its training was followed, the steps and the row of one query at each */
/** @typedef {[number, number]} Point a position, row and column, in pixels of the LR image */
/** @typedef {{ low: number, high: number, colours: Uint8ClampedArray }} Bar a colour bar: 256 RGBA colours from low to high */
/** @typedef {{ values: Float64Array, bar: Bar, difference: boolean, label: string, note: string }} Heat what one heat map shows */
/** @typedef {{ label: string, bar: Bar, ends: string[] }} Legend what a colour bar stands for, and the words at its ends */

/** The state that an address keeps. */
export const SHARED = ["query", "query2", "queries", "tap", "mode", "colour", "affinity_max", "difference_max", "view", "shown", "step"];
export const MOST_ZOOM = 16;

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
export const clamp = (v, low, high) => Math.min(Math.max(v, low), high);
/** @param {number} v @param {number} [digits] with a true minus sign */
export const fixed = (v, digits = 2) => v.toFixed(digits).replace(/^-(?=.*[1-9])/, "\u2212").replace(/^-/, "");
/** @param {number} v with its sign */
const signed = (v) => (v >= 0.005 ? "+" : "") + fixed(v);

/** @param {Point | null} a @param {Point | null} b */
export const same = (a, b) => a !== null && b !== null && a[0] === b[0] && a[1] === b[1];
/** @param {Point} point */
export const place = ([y, x]) => `row ${y}, column ${x}`;

/** The training steps at which some network's row was kept, ascending. @param {any} info @returns {number[]} */
export const stepsOf = (info) => info.past?.steps ?? [];

/** @param {string} hex 256 colours as 6 digits each @returns {Uint8ClampedArray} RGBA */
function readColours(hex) {
  const colours = new Uint8ClampedArray(1024).fill(255);
  for (let i = 0; i < 768; i++) colours[4 * Math.floor(i / 3) + (i % 3)] = parseInt(hex.slice(2 * i, 2 * i + 2), 16);
  return colours;
}

/** What one view computes and keeps: unit maps, rows, colour bars. */
export class Rows {
  /** @param {Model} model */
  constructor(model) {
    this.model = model;
    /** @type {any} */ this.source = null;
    /** @type {Net[]} */ this.nets = [];
    /** @type {Map<string, Float64Array[]>} */ this.cache = new Map();
    /** @type {Record<string, Uint8ClampedArray>} */ this.colours = {}; // to choose from, for affinities
    this.differenceColours = new Uint8ClampedArray();
  }

  /** Take new unit maps, if the host has others than before. */
  refresh() {
    const data = this.model.get("_data"), info = this.model.get("_info");
    if (data === this.source) return;
    this.source = data;
    this.cache.clear();
    for (const [name, hex] of Object.entries(info.colours)) this.colours[name] = readColours(/** @type {string} */ (hex));
    this.differenceColours = readColours(info.difference_colours);
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

  /** Whether there is a student whose map can be compared with the teacher's. */
  get comparing() { return this.nets.some((net) => this.comparable(net)); }

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

  /** The colour bar of the affinities, or of the differences: an end that was chosen is the same at every tap, query and step.
   * @param {boolean} difference @returns {Bar} */
  bar(difference) {
    const info = this.model.get("_info"), chosen = this.model.get(difference ? "difference_max" : "affinity_max");
    const [signs, widest] = info.bars[this.source.tap];
    const high = chosen ?? (difference ? widest : 1), colours = difference ? this.differenceColours : this.colours[this.model.get("colour")];
    const below = difference || (chosen === null ? signs : Object.values(info.bars).some((/** @type {any} */ needs) => needs[0]));
    return { low: below ? -high : 0, high, colours };
  }

  /** Whether the maps of students show their difference to the teacher's. */
  get different() { return this.model.get("mode") === "difference" && this.comparing; }

  /** What every network's heat map shows for a point. @param {Point} point @returns {Heat[]} */
  heats(point) {
    const rows = this.of(point), teacher = this.teacher, base = teacher && rows[this.nets.indexOf(teacher)];
    return this.nets.map((net, k) => {
      const step = this.stepOf(net, point), name = step === null ? net.name : `${net.name}, step ${step}`;
      const difference = this.different && this.comparable(net), bar = this.bar(difference);
      const likeness = `mean affinity ${fixed(mean(rows[k]))}`;
      if (!base || !this.comparable(net)) return { values: rows[k], bar, difference, label: name, note: likeness };
      const gap = minus(rows[k], base), far = `mean |\u0394| ${fixed(mean(gap.map(Math.abs)), 3)}`;
      return difference ? { values: gap, bar, difference, label: `${name}, \u0394`, note: far }
        : { values: rows[k], bar, difference, label: name, note: `${likeness}, ${far}` };
    });
  }

  /** The colour bars in use: what they measure, their colours, and their ends in words, which say where a map goes beyond.
   * @param {Heat[]} heats that are shown @returns {Legend[]} */
  legends(heats) {
    return [false, true].filter((difference) => !difference || this.different).flatMap((difference) => {
      const bar = this.bar(difference), shown = heats.filter((heat) => heat.difference === difference);
      if (!shown.length) return [];
      const beyond = (/** @type {(v: number) => boolean} */ test) => shown.some((heat) => heat.values.some(test));
      const say = (/** @type {number} */ v) => String(v).replace("-", "\u2212");
      return [{ label: difference ? "\u0394 affinity, student less teacher" : "Affinity (cosine)", bar, ends: [
        (beyond((v) => v < bar.low - 1e-3) ? "\u2264 " : "") + say(bar.low), (beyond((v) => v > bar.high + 1e-3) ? "\u2265 " : "") + say(bar.high)] }];
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
    tap: (v) => info.taps.includes(v), mode: (v) => ["affinity", "difference"].includes(v),
    colour: (v) => Object.hasOwn(info.colours, v), affinity_max: top, difference_max: top,
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
