/**
 * @file COCO's run-length codes: runs down the columns, from left to right; unset, set, unset, and so on. Only the
 * first run may be empty. https://github.com/cocodataset/cocoapi (`maskApi`)
 */

/**
 * @param {ArrayLike<number>} counts
 * @param {number} width
 * @param {number} height
 * @returns {Uint8Array} (h w) 0 or 1
 * @throws {RangeError} the runs don't add up to the mask's pixels
 */
export function decodeRuns(counts, width, height) {
  const mask = new Uint8Array(width * height);
  let at = 0;
  for (let i = 0; i < counts.length; i++) {
    const end = at + counts[i];
    if (end > mask.length) break;
    if (i % 2) {
      let [x, y] = [Math.floor(at / height), at % height];
      for (let k = at; k < end; k++) {
        mask[y * width + x] = 1;
        if (++y === height) [x, y] = [x + 1, 0];
      }
    }
    at = end;
  }
  if (at !== mask.length || sum(counts, 0, 1) !== at) {
    throw new RangeError(`run lengths: their sum is not ${width} x ${height} pixels`);
  }
  return mask;
}

/**
 * @param {ArrayLike<number>} mask (h w), any value but 0 is set
 * @param {number} width
 * @param {number} height
 * @returns {Uint32Array}
 */
export function encodeRuns(mask, width, height) {
  const writer = new RunWriter(width * height);
  for (let x = 0; x < width; x++) {
    let start = -1;
    for (let y = 0; y < height; y++) {
      if (mask[y * width + x]) {
        if (start < 0) start = y;
      } else if (start >= 0) {
        writer.add(x * height + start, x * height + y);
        start = -1;
      }
    }
    if (start >= 0) writer.add(x * height + start, (x + 1) * height);
  }
  return writer.finish();
}

/** Writes run lengths from stretches of set pixels, given in order. */
export class RunWriter {
  /** @param {number} total pixels of the mask */
  constructor(total) {
    this.total = total;
    /** @type {number[]} */
    this.counts = [];
    this.end = 0;
  }

  /**
   * Set pixels, counted down the columns.
   *
   * @param {number} start
   * @param {number} end excluded; stretches that touch become one
   */
  add(start, end) {
    if (start === this.end && this.counts.length) this.counts[this.counts.length - 1] += end - start;
    else this.counts.push(start - this.end, end - start);
    this.end = end;
  }

  /** @returns {Uint32Array} */
  finish() {
    if (this.end < this.total) this.counts.push(this.total - this.end);
    return Uint32Array.from(this.counts);
  }
}

/**
 * COCO's compressed text: differences to the run before the last, in groups of five bits.
 *
 * @param {ArrayLike<number>} counts
 * @returns {string}
 */
export function toString(counts) {
  const codes = [];
  for (let i = 0; i < counts.length; i++) {
    let value = counts[i] - (i > 2 ? counts[i - 2] : 0);
    for (let more = true; more; ) {
      let group = value & 31;
      value >>= 5;
      more = value !== (group & 16 ? -1 : 0);
      if (more) group |= 32;
      codes.push(String.fromCharCode(group + 48));
    }
  }
  return codes.join("");
}

/**
 * @param {string} text
 * @returns {Uint32Array}
 * @throws {RangeError} not such a text
 */
export function fromString(text) {
  /** @type {number[]} */
  const counts = [];
  for (let at = 0; at < text.length; ) {
    let value = 0;
    let shift = 0;
    for (let more = true; more; shift += 5) {
      const group = text.charCodeAt(at++) - 48;
      if (!(group >= 0 && group < 64) || shift > 30) throw new RangeError("run lengths: not COCO's compressed text");
      value += (group & 31) * 2 ** shift;
      more = (group & 32) !== 0;
      if (!more && group & 16) value -= 2 ** (shift + 5);
    }
    if (counts.length > 2) value += counts[counts.length - 2];
    if (value < 0) throw new RangeError("run lengths: a negative length");
    counts.push(value);
  }
  return Uint32Array.from(counts);
}

/**
 * @param {ArrayLike<number>} counts
 * @returns {number} set pixels
 */
export function areaOf(counts) {
  return sum(counts, 1, 2);
}

/**
 * @param {ArrayLike<number>} counts
 * @param {number} height of the mask
 * @returns {[number, number, number, number]} x, y, width, height; zeros if the mask is empty
 */
export function boxOf(counts, height) {
  let [x0, y0, x1, y1] = [Infinity, Infinity, -1, -1];
  let at = 0;
  for (let i = 0; i < counts.length; at += counts[i++]) {
    if (i % 2 === 0 || !counts[i]) continue;
    const last = at + counts[i] - 1;
    const [from, to] = [Math.floor(at / height), Math.floor(last / height)];
    x0 = Math.min(x0, from);
    x1 = Math.max(x1, to);
    y0 = Math.min(y0, from === to ? at % height : 0); // a run over several columns reaches their ends
    y1 = Math.max(y1, from === to ? last % height : height - 1);
  }
  return x1 < 0 ? [0, 0, 0, 0] : [x0, y0, x1 - x0 + 1, y1 - y0 + 1];
}

/** @param {ArrayLike<number>} values @param {number} first @param {number} step @returns {number} */
function sum(values, first, step) {
  let total = 0;
  for (let i = first; i < values.length; i += step) total += values[i];
  return total;
}
