/**
 * @file A photo in the model's square frame, with the pixels that Python's predictor computes.
 *
 * Pillow's bilinear filter for 8-bit pixels: a triangle, as wide as two source pixels or two target pixels, whichever is
 * more; first along the rows, then along the columns; weights as integers of 22 fractional bits, and each of the two
 * results rounded to 8 bits. A browser's own smoothing of canvases differs from it by many grey levels.
 */

const BITS = 22; // of a weight's fraction: 255 times the sum of weights stays below 2^31
const HALF = 1 << (BITS - 1);

/**
 * Rows and columns of a photo in a frame.
 *
 * @param {number} height
 * @param {number} width
 * @param {number} size side of the frame
 * @returns {[number, number]}
 */
export function targetSize(height, width, size) {
  const scale = size / Math.max(height, width);
  return [Math.max(1, Math.floor(height * scale + 0.5)), Math.max(1, Math.floor(width * scale + 0.5))];
}

/**
 * The weights with which a line of `old` pixels becomes one of `size` pixels.
 *
 * @param {number} old
 * @param {number} size
 * @returns {{ first: Int32Array, counts: Int32Array, weights: Int32Array, taps: number }} first source pixel and number
 *   of source pixels of each target pixel (size), and the weights (size taps)
 */
export function triangle(old, size) {
  const scale = old / size;
  const support = Math.max(scale, 1);
  const taps = Math.ceil(support) * 2 + 1;
  const first = new Int32Array(size);
  const counts = new Int32Array(size);
  const weights = new Int32Array(size * taps);
  const line = new Float64Array(taps);
  for (let i = 0; i < size; i++) {
    const centre = (i + 0.5) * scale;
    const start = Math.max(0, Math.trunc(centre - support + 0.5));
    const count = Math.min(old, Math.trunc(centre + support + 0.5)) - start;
    let sum = 0;
    for (let t = 0; t < count; t++) {
      line[t] = Math.max(0, 1 - Math.abs((t + start - centre + 0.5) * (1 / support)));
      sum += line[t];
    }
    first[i] = start;
    counts[i] = count;
    for (let t = 0; t < count; t++) weights[i * taps + t] = Math.trunc(0.5 + (line[t] / sum) * (1 << BITS));
  }
  return { first, counts, weights, taps };
}

/** Takes a photo's rows in bands, from top to bottom, and makes the frame of them. */
export class FrameBuilder {
  /**
   * @param {number} width of the photo
   * @param {number} height
   * @param {number} size side of the frame
   */
  constructor(width, height, size) {
    const [rows, columns] = targetSize(height, width, size);
    this.rows = rows;
    this.columns = columns;
    this.width = width;
    this.height = height;
    this.received = 0;
    // All rows of the photo, but only as wide as the frame: 18 MB for 50 megapixels.
    this.narrow = new Uint8Array(height * this.columns * 3);
    this.filter = this.columns === width ? null : triangle(width, this.columns);
  }

  /**
   * Add the next rows.
   *
   * @param {Uint8Array | Uint8ClampedArray} rgba (n w 4)
   * @throws {RangeError} not whole rows, or more than the photo has
   */
  add(rgba) {
    const count = rgba.length / (4 * this.width);
    if (!Number.isInteger(count) || this.received + count > this.height) throw new RangeError("not rows of this photo");
    const { narrow, columns, width, filter } = this;
    let to = this.received * columns * 3;
    this.received += count;
    if (!filter) {
      for (let from = 0; from < rgba.length; from += 4) {
        narrow[to++] = rgba[from];
        narrow[to++] = rgba[from + 1];
        narrow[to++] = rgba[from + 2];
      }
      return;
    }
    const { first, counts, weights, taps } = filter;
    for (let y = 0; y < count; y++) {
      const row = y * width * 4;
      for (let x = 0; x < columns; x++) {
        let [r, g, b] = [HALF, HALF, HALF];
        let from = row + first[x] * 4;
        const start = x * taps;
        const end = start + counts[x];
        for (let t = start; t < end; t++, from += 4) {
          const weight = weights[t];
          r = (r + rgba[from] * weight) | 0;
          g = (g + rgba[from + 1] * weight) | 0;
          b = (b + rgba[from + 2] * weight) | 0;
        }
        narrow[to++] = byte(r);
        narrow[to++] = byte(g);
        narrow[to++] = byte(b);
      }
    }
  }

  /** Whether all rows have been added. */
  get complete() {
    return this.received === this.height;
  }

  /**
   * The photo in the frame, without the padding.
   *
   * @returns {{ pixels: Uint8Array, filled: [number, number] }} (rows columns 3), and rows and columns
   * @throws {RangeError} rows are missing
   */
  finish() {
    if (!this.complete) throw new RangeError(`${this.height - this.received} rows are missing`);
    const { narrow, rows, columns, height } = this;
    if (rows === height) return { pixels: narrow, filled: [rows, columns] };
    const { first, counts, weights, taps } = triangle(height, rows);
    const stride = columns * 3;
    const pixels = new Uint8Array(rows * stride);
    const sums = new Int32Array(stride);
    for (let y = 0; y < rows; y++) {
      sums.fill(HALF);
      for (let t = 0; t < counts[y]; t++) {
        const weight = weights[y * taps + t];
        const from = (first[y] + t) * stride;
        for (let i = 0; i < stride; i++) sums[i] += narrow[from + i] * weight;
      }
      for (let i = 0; i < stride; i++) pixels[y * stride + i] = byte(sums[i]);
    }
    return { pixels, filled: [rows, columns] };
  }
}

/** @param {number} sum with `BITS` fractional bits @returns {number} */
function byte(sum) {
  const value = sum >> BITS;
  return value < 0 ? 0 : value > 255 ? 255 : value;
}

/**
 * The encoder's input: normalised in float32, channel by channel, zeros beyond the photo.
 *
 * @param {Uint8Array} pixels (rows columns 3)
 * @param {[number, number]} filled rows and columns
 * @param {number} size side of the frame
 * @param {{ mean: number[], std: number[] }} statistics
 * @returns {Float32Array} (1 3 size size)
 */
export function normalised(pixels, [rows, columns], size, { mean, std }) {
  const out = new Float32Array(3 * size * size);
  for (let c = 0; c < 3; c++) {
    const table = new Float32Array(256);
    const [low, unit] = [Math.fround(mean[c]), Math.fround(std[c])];
    for (let v = 0; v < 256; v++) table[v] = Math.fround(v - low) / unit;
    for (let y = 0; y < rows; y++) {
      const to = (c * size + y) * size;
      const from = y * columns * 3 + c;
      for (let x = 0; x < columns; x++) out[to + x] = table[pixels[from + 3 * x]];
    }
  }
  return out;
}
