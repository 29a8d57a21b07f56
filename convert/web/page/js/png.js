/**
 * @file Decodes PNG files without a canvas. A canvas multiplies colours with alpha and reduces 16 bits in its own way;
 * Python's reader drops alpha, keeps the upper byte of 16-bit colours, and divides 16-bit grey by 257.
 *
 * PNG (third edition), https://www.w3.org/TR/png-3/
 */

const CHANNELS = /** @type {Record<number, number>} */ ({ 0: 1, 2: 3, 3: 1, 4: 2, 6: 4 }); // by colour type
const MAX_PIXELS = 1 << 27;
const PAUSE = 8; // ms of work between two pauses
// First column and row, and steps, of the seven passes of an interlaced picture.
const ADAM7 = [[0, 0, 8, 8], [4, 0, 8, 8], [0, 4, 4, 8], [2, 0, 4, 4], [0, 2, 2, 4], [1, 0, 2, 2], [0, 1, 1, 2]];

/**
 * @typedef {object} Header
 * @property {number} width
 * @property {number} height
 * @property {number} depth bits per channel
 * @property {number} type colour type
 * @property {Uint8Array} palette (n 3)
 * @property {boolean} interlaced
 */

/**
 * @param {Uint8Array<ArrayBuffer>} bytes
 * @param {() => Promise<void>} pause called every few milliseconds
 * @returns {Promise<{ width: number, height: number, rgb: Uint8Array }>} (h w 3)
 * @throws {Error} the file is damaged
 */
export async function decodePng(bytes, pause) {
  const { header, data } = chunks(bytes);
  const { width, height, depth, type, interlaced } = header;
  const bits = depth * CHANNELS[type];
  const passes = (interlaced ? ADAM7 : [[0, 0, 1, 1]])
    .map(([x, y, dx, dy]) => ({ x, y, dx, dy, w: Math.ceil((width - x) / dx), h: Math.ceil((height - y) / dy) }))
    .filter(({ w, h }) => w > 0 && h > 0);
  const rgb = new Uint8Array(width * height * 3);
  const stream = new Blob(data).stream().pipeThrough(new DecompressionStream("deflate"));
  const read = exactly(stream.getReader());
  const step = Math.max(1, bits >> 3); // bytes to the pixel on the left
  let since = performance.now();
  for (const { x, y, dx, dy, w, h } of passes) {
    const size = Math.ceil((w * bits) / 8);
    /** @type {Uint8Array} */
    let above = new Uint8Array(size);
    for (let row = 0; row < h; row++) {
      const line = await read(size + 1);
      const pixels = line.subarray(1);
      unfilter(line[0], pixels, above, step);
      toRgb(header, pixels, w, rgb, ((y + row * dy) * width + x) * 3, dx * 3);
      above = pixels;
      if (performance.now() - since > PAUSE) {
        await pause();
        since = performance.now();
      }
    }
  }
  return { width, height, rgb };
}

/** @param {Uint8Array<ArrayBuffer>} bytes @returns {{ header: Header, data: Uint8Array<ArrayBuffer>[] }} */
function chunks(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const data = [];
  /** @type {Header | null} */
  let header = null;
  let palette = new Uint8Array();
  for (let at = 8; at + 12 <= bytes.length; ) {
    const size = view.getUint32(at);
    const content = bytes.subarray(at + 8, at + 8 + size);
    switch (String.fromCharCode(...bytes.subarray(at + 4, at + 8))) {
      case "IHDR":
        header = {
          width: view.getUint32(at + 8), height: view.getUint32(at + 12), depth: content[8], type: content[9],
          palette, interlaced: content[12] === 1,
        };
        break;
      case "PLTE":
        palette = content;
        break;
      case "IDAT":
        data.push(content);
        break;
    }
    at += 12 + size;
  }
  if (!header || !data.length || !(header.type in CHANNELS) || ![1, 2, 4, 8, 16].includes(header.depth)) {
    throw new Error("not a PNG file of a known kind");
  }
  if (!header.width || !header.height || header.width * header.height > MAX_PIXELS) throw new Error("too large");
  return { header: { ...header, palette }, data };
}

/**
 * @param {ReadableStreamDefaultReader<Uint8Array>} reader
 * @returns {(count: number) => Promise<Uint8Array>} reads so many bytes; throws at the end of the stream
 */
function exactly(reader) {
  let held = new Uint8Array();
  let used = 0;
  return async (count) => {
    const out = new Uint8Array(count);
    for (let filled = 0; filled < count; ) {
      if (used === held.length) {
        const { value, done } = await reader.read();
        if (done) throw new Error("pixels are missing");
        [held, used] = [new Uint8Array(value), 0];
        continue;
      }
      const some = held.subarray(used, used + count - filled);
      out.set(some, filled);
      filled += some.length;
      used += some.length;
    }
    return out;
  };
}

/**
 * Undo a row's filter in place.
 *
 * @param {number} kind
 * @param {Uint8Array} row
 * @param {Uint8Array} above
 * @param {number} step
 */
function unfilter(kind, row, above, step) {
  if (kind > 4) throw new Error("unknown filter");
  for (let i = 0; i < row.length && kind; i++) {
    const left = i < step ? 0 : row[i - step];
    const up = above[i];
    if (kind === 1) row[i] += left;
    else if (kind === 2) row[i] += up;
    else if (kind === 3) row[i] += (left + up) >> 1;
    else {
      const corner = i < step ? 0 : above[i - step];
      const [a, b, c] = [Math.abs(up - corner), Math.abs(left - corner), Math.abs(left + up - 2 * corner)];
      row[i] += a <= b && a <= c ? left : b <= c ? up : corner;
    }
  }
}

/**
 * Write a row's pixels as RGB.
 *
 * @param {Header} header
 * @param {Uint8Array} row
 * @param {number} count pixels
 * @param {Uint8Array} rgb
 * @param {number} to index of the first pixel in rgb
 * @param {number} step to the next
 */
function toRgb({ depth, type, palette }, row, count, rgb, to, step) {
  const channels = CHANNELS[type];
  const top = (1 << depth) - 1;
  for (let i = 0; i < count; i++, to += step) {
    if (type === 2 || type === 6) {
      const at = i * channels * (depth >> 3);
      for (let c = 0; c < 3; c++) rgb[to + c] = row[at + c * (depth >> 3)];
      continue;
    }
    let value;
    if (depth === 16) {
      const at = i * channels * 2;
      value = type === 4 ? row[at] : Math.floor((row[at] * 256 + row[at + 1] + 128) / 257);
    } else if (depth === 8) value = row[i * channels];
    else value = (row[(i * depth) >> 3] >> (8 - depth - ((i * depth) & 7))) & top;
    if (type === 3) {
      for (let c = 0; c < 3; c++) rgb[to + c] = palette[3 * value + c] ?? 0;
    } else {
      if (depth < 8) value *= 255 / top;
      rgb[to] = rgb[to + 1] = rgb[to + 2] = value;
    }
  }
}
