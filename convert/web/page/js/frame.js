/**
 * @file A photo in the model's square frame, with the pixels that Python's predictor computes.
 *
 * Pillow's bilinear filter for 8-bit pixels: a triangle, as wide as two source or two target pixels, whichever is more;
 * along the rows and along the columns; weights as integers of 22 fractional bits, and each of the two results rounded
 * to 8 bits. A browser's own smoothing of canvases differs from it by many grey levels.
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

/**
 * Takes a photo's rows in bands, from top to bottom, and makes the frame of them. It holds the frame and a few rows.
 */
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
    this.across = columns === width ? null : triangle(width, columns);
    this.down = rows === height ? null : triangle(height, rows);
    // Pillow from version 12.2 on: columns first if the height shrinks by more than twice as much as the width.
    this.downFirst = height > rows && height - rows > 2 * (width - columns);
    this.pixels = new Uint8Array(rows * columns * 3);
    /** @type {{ row: number, sums: Int32Array }[]} */
    this.open = []; // target rows that need more rows of the photo
    this.next = 0; // the target row to open next
  }

  /** Whether all rows have been added. */
  get complete() {
    return this.received === this.height;
  }

  /**
   * Add the next rows.
   *
   * @param {Uint8Array | Uint8ClampedArray} rgba (n w 4)
   * @throws {RangeError} not whole rows, or more than the photo has
   */
  add(rgba) {
    const { width, across, downFirst } = this;
    const count = rgba.length / (4 * width);
    if (!Number.isInteger(count) || this.received + count > this.height) throw new RangeError("not rows of this photo");
    for (let y = 0; y < count; y++) {
      const row = rgba.subarray(4 * y * width, 4 * (y + 1) * width);
      this.#addRow(across && !downFirst ? narrowed(row, 4, across) : withoutAlpha(row));
      this.received++;
    }
  }

  /**
   * The photo in the frame, without the padding.
   *
   * @returns {{ pixels: Uint8Array, filled: [number, number] }} (rows columns 3), and rows and columns
   * @throws {RangeError} rows are missing
   */
  finish() {
    if (!this.complete) throw new RangeError(`${this.height - this.received} rows are missing`);
    return { pixels: this.pixels, filled: [this.rows, this.columns] };
  }

  /** @param {Uint8Array} row (n 3) */
  #addRow(row) {
    const y = this.received;
    const { down, open } = this;
    if (!down) {
      this.#write(y, row);
      return;
    }
    const { first, counts, weights, taps } = down;
    while (this.next < this.rows && first[this.next] <= y) {
      open.push({ row: this.next++, sums: new Int32Array(row.length).fill(HALF) });
    }
    for (const { row: target, sums } of open) {
      const weight = weights[target * taps + y - first[target]];
      for (let i = 0; i < sums.length; i++) sums[i] += row[i] * weight;
    }
    while (open.length && first[open[0].row] + counts[open[0].row] === y + 1) {
      const [{ row: target, sums }] = open.splice(0, 1);
      const done = new Uint8Array(sums.length);
      for (let i = 0; i < sums.length; i++) done[i] = byte(sums[i]);
      this.#write(target, done);
    }
  }

  /** @param {number} y @param {Uint8Array} row (n 3) */
  #write(y, row) {
    const { across, downFirst, columns } = this;
    this.pixels.set(across && downFirst ? narrowed(row, 3, across) : row, y * columns * 3);
  }
}

/** @param {Uint8Array | Uint8ClampedArray} rgba (n 4) @returns {Uint8Array} (n 3) */
function withoutAlpha(rgba) {
  const out = new Uint8Array((rgba.length / 4) * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    out[to++] = rgba[from];
    out[to++] = rgba[from + 1];
    out[to++] = rgba[from + 2];
  }
  return out;
}

/**
 * @param {Uint8Array | Uint8ClampedArray} row (n channels)
 * @param {number} channels of which the first three count
 * @param {ReturnType<typeof triangle>} filter
 * @returns {Uint8Array} (size 3)
 */
function narrowed(row, channels, { first, counts, weights, taps }) {
  const size = first.length;
  const out = new Uint8Array(size * 3);
  for (let x = 0, to = 0; x < size; x++) {
    let r = HALF;
    let g = HALF;
    let b = HALF;
    let from = first[x] * channels;
    const start = x * taps;
    const end = start + counts[x];
    for (let t = start; t < end; t++, from += channels) {
      const weight = weights[t];
      r = (r + row[from] * weight) | 0;
      g = (g + row[from + 1] * weight) | 0;
      b = (b + row[from + 2] * weight) | 0;
    }
    out[to++] = byte(r);
    out[to++] = byte(g);
    out[to++] = byte(b);
  }
  return out;
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
