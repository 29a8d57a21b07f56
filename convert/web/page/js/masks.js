/**
 * @file Low-resolution logits to masks of any size, by SAM's rule: bilinear to the square frame, cropped to the photo,
 * bilinear to the target size, both with half-pixel centres and without antialiasing.
 *
 * The two steps are one weighted sum of three logits or fewer per axis. Sums are rounded to float32 after each
 * operation, in the order of Python's `portable/postprocess.py`, so the same logits give the same mask.
 */

import { RunWriter } from "./runs.js";

const f32 = Math.fround;
const OFFSET = 1; // of the stability score's two thresholds

/**
 * Both steps along one axis.
 *
 * @typedef {object} Axis
 * @property {number} taps k
 * @property {Int32Array} first (n) the first of the k logits that each target pixel reads
 * @property {Float32Array} weights (n k)
 */

/**
 * @param {number} low side of the logits
 * @param {number} frame side of the frame
 * @param {number} valid pixels of the frame that the photo fills
 * @param {number} size n, the target's pixels
 * @returns {Axis}
 */
export function axis(low, frame, valid, size) {
  const toTarget = bilinear(valid, size);
  const toFrame = bilinear(low, frame);
  const sums = new Float64Array(low);
  /** @type {number[][]} */
  const rows = [];
  const first = new Int32Array(size);
  let taps = 1;
  for (let i = 0; i < size; i++) {
    let [start, end] = [low, 0];
    for (const a of [0, 1]) {
      const row = toTarget.index[2 * i + a];
      for (const b of [0, 1]) {
        const at = toFrame.index[2 * row + b];
        const weight = toTarget.weight[2 * i + a] * toFrame.weight[2 * row + b];
        if (!weight) continue;
        sums[at] += weight;
        start = Math.min(start, at);
        end = Math.max(end, at + 1);
      }
    }
    rows.push(Array.from(sums.subarray(start, end)));
    sums.fill(0, start, end);
    first[i] = start;
    taps = Math.max(taps, end - start);
  }
  const weights = new Float32Array(size * taps);
  rows.forEach((row, i) => {
    const start = Math.min(first[i], low - taps);
    weights.set(row, i * taps + first[i] - start);
    first[i] = start;
  });
  return { taps, first, weights };
}

/**
 * @param {number} old
 * @param {number} size
 * @returns {{ index: Int32Array, weight: Float64Array }} the two source pixels of each target pixel (2 size)
 */
function bilinear(old, size) {
  const index = new Int32Array(2 * size);
  const weight = new Float64Array(2 * size);
  for (let i = 0; i < size; i++) {
    const centre = Math.max((i + 0.5) * (old / size) - 0.5, 0);
    const below = Math.floor(centre);
    const fraction = centre - below;
    index[2 * i] = Math.min(below, old - 1);
    index[2 * i + 1] = Math.min(below + 1, old - 1);
    weight[2 * i] = 1 - fraction;
    weight[2 * i + 1] = 1 - Math.abs(fraction - 1);
  }
  return { index, weight };
}

/** Logits to masks of one target size. */
export class Upscaler {
  /**
   * @param {number} side s of the logits
   * @param {number} frame side of the model's frame
   * @param {[number, number]} filled rows and columns of the frame that the photo fills
   * @param {number} width of the target
   * @param {number} height
   */
  constructor(side, frame, filled, width, height) {
    this.side = side;
    this.width = width;
    this.height = height;
    this.byRow = axis(side, frame, filled[0], height);
    this.byColumn = axis(side, frame, filled[1], width);
  }

  /**
   * @param {Float32Array} logits (s s)
   * @returns {Uint8Array} (h w) 0 or 1
   */
  mask(logits) {
    const { side, width, height, byRow, byColumn } = this;
    const mask = new Uint8Array(width * height);
    // Bilinear resizing doesn't exceed the largest logit it reads: only the surroundings of positive ones are computed.
    let [low, high, left, right] = [side, -1, side, -1];
    logits.forEach((value, i) => {
      if (!(value > 0)) return;
      const [r, c] = [Math.floor(i / side), i % side];
      if (high < 0) low = r;
      high = r;
      left = Math.min(left, c);
      right = Math.max(right, c);
    });
    if (high < 0) return mask;
    const [top, bottom] = reach(byRow, low, high);
    const [x0, x1] = reach(byColumn, left, right);
    if (top === bottom || x0 === x1) return mask;
    const columns = x1 - x0;
    const wide = new Float32Array(side * columns);
    for (let r = byRow.first[top]; r < byRow.first[bottom - 1] + byRow.taps; r++) {
      const to = r * columns - x0;
      for (let x = x0; x < x1; x++) wide[to + x] = weighted(logits, r * side + byColumn.first[x], 1, byColumn, x);
    }
    for (let y = top; y < bottom; y++) {
      const from = byRow.first[y] * columns - x0;
      for (let x = x0; x < x1; x++) if (weighted(wide, from + x, columns, byRow, y) > 0) mask[y * width + x] = 1;
    }
    return mask;
  }

  /**
   * The mask as COCO's run lengths, and how stable it is, without the mask itself.
   *
   * @param {Float32Array} logits (s s)
   * @param {number} [offset] of the stability score's thresholds
   * @returns {{ counts: Uint32Array, area: number, box: [number, number, number, number], stability: number }} the box
   *   is x, y, width, height, zeros if empty
   */
  measure(logits, offset = OFFSET) {
    const { side, width, height, byRow } = this;
    const writer = new RunWriter(width * height);
    const line = new Float32Array(side);
    let [sure, possible, area] = [0, 0, 0];
    let [x0, y0, x1, y1] = [width, height, -1, -1];
    for (let x = 0; x < width; x++) {
      const range = this.#column(logits, x, -offset, line);
      if (!range) continue;
      let start = -1;
      for (let y = range[0]; y <= range[1]; y++) {
        let value = -Infinity; // ends the last run
        if (y < range[1]) {
          value = weighted(line, byRow.first[y], 1, byRow, y);
          if (value > offset) sure++;
          if (value > -offset) possible++;
        }
        if (value > 0) {
          if (start < 0) start = y;
        } else if (start >= 0) {
          writer.add(x * height + start, x * height + y);
          area += y - start;
          x0 = Math.min(x0, x);
          x1 = x;
          y0 = Math.min(y0, start);
          y1 = Math.max(y1, y);
          start = -1;
        }
      }
    }
    const counts = writer.finish();
    const stability = sure / Math.max(possible, 1);
    return { counts, area, box: area ? [x0, y0, x1 - x0 + 1, y1 - y0] : [0, 0, 0, 0], stability };
  }

  /**
   * Resize a column. Bilinear resizing doesn't exceed the largest logit it reads, so only the surroundings of logits
   * above the limit matter.
   *
   * @param {Float32Array} logits (s s)
   * @param {number} x
   * @param {number} limit
   * @param {Float32Array} line (s) receives the logits of column x
   * @returns {[number, number] | null} the rows of the target that can exceed the limit; null if none can
   */
  #column(logits, x, limit, line) {
    const { side, byRow, byColumn } = this;
    let [low, high] = [side, -1];
    for (let r = 0; r < side; r++) {
      const value = weighted(logits, r * side + byColumn.first[x], 1, byColumn, x);
      line[r] = value;
      if (value > limit) {
        if (high < 0) low = r;
        high = r;
      }
    }
    return high < 0 ? null : reach(byRow, low, high);
  }
}

/**
 * One sum of an axis, in float32.
 *
 * @param {Float32Array} values
 * @param {number} from the first value
 * @param {number} step to the next
 * @param {Axis} way
 * @param {number} i target pixel
 * @returns {number}
 */
function weighted(values, from, step, { taps, weights }, i) {
  let sum = f32(0);
  for (let t = i * taps; t < (i + 1) * taps; t++, from += step) sum = f32(sum + f32(values[from] * weights[t]));
  return sum;
}

/**
 * @param {Axis} axis
 * @param {number} low
 * @param {number} high
 * @returns {[number, number]} the target pixels, end excluded, that read the logits `low` to `high`
 */
function reach({ first, taps }, low, high) {
  return [lowerBound(first, low - taps + 1), lowerBound(first, high + 1)];
}

/** @param {Int32Array} sorted @param {number} value @returns {number} the first index whose entry is at least value */
function lowerBound(sorted, value) {
  let [low, high] = [0, sorted.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** @type {{ key: string, upscaler: Upscaler } | null} */
let latest = null; // a hover preview asks for the same size many times

/**
 * The mask of low-resolution logits at a display size, synchronously.
 *
 * @param {Float32Array} logits (s s)
 * @param {{ filled: [number, number] }} embedding
 * @param {number} imageSize side of the model's frame, `info.image_size`
 * @param {number} width of the result
 * @param {number} height
 * @returns {Uint8Array} (h w) 0 or 1
 */
export function maskAt(logits, { filled }, imageSize, width, height) {
  const side = Math.sqrt(logits.length);
  const key = [side, imageSize, ...filled, width, height].join();
  if (latest?.key !== key) latest = { key, upscaler: new Upscaler(side, imageSize, filled, width, height) };
  return latest.upscaler.mask(logits);
}

/**
 * The fraction of a mask's pixels that remain when the threshold rises from -1 to 1; 0 for an empty mask.
 *
 * @param {Float32Array} logits of any shape
 * @returns {number}
 */
export function stabilityScore(logits) {
  let [sure, possible] = [0, 0];
  for (const value of logits) {
    if (value > OFFSET) sure++;
    if (value > -OFFSET) possible++;
  }
  return sure / Math.max(possible, 1);
}
