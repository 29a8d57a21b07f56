/**
 * @file Writes PNG files from rows, without a canvas: canvases are limited in size, and change colours below alpha.
 * https://www.w3.org/TR/png/
 */

/* global CompressionStream */
import { crc32 } from "./crc.js";

const BAND = 1 << 19; // bytes that are compressed at once; the page stays responsive in between

/**
 * @param {number} width
 * @param {number} height
 * @param {1 | 4} channels grey, or red, green, blue and alpha
 * @param {(y0: number, y1: number) => Uint8Array | Uint8ClampedArray} rows pixels of the rows y0 to y1 (excluded)
 * @returns {Promise<Blob>}
 */
export async function writePng(width, height, channels, rows) {
  const header = new Uint8Array(13);
  const view = new DataView(header.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  header.set([8, channels === 1 ? 0 : 6], 8);
  /** @type {Uint8Array<ArrayBuffer>[]} */
  const parts = [Uint8Array.of(137, 80, 78, 71, 13, 10, 26, 10), ...chunk("IHDR", header)];
  const stream = new CompressionStream("deflate");
  const collected = collect(stream.readable, parts);
  const writer = stream.writable.getWriter();
  const stride = width * channels;
  const count = Math.max(1, Math.floor(BAND / stride));
  /** @type {Uint8Array | Uint8ClampedArray} */
  let above = new Uint8Array(stride);
  for (let y = 0; y < height; y += count) {
    const band = rows(y, Math.min(height, y + count));
    await writer.write(filtered(band, above, stride, channels));
    above = band.slice(band.length - stride);
  }
  await writer.close();
  await collected;
  parts.push(...chunk("IEND", new Uint8Array(0)));
  return new Blob(parts, { type: "image/png" });
}

/**
 * Rows with their filter bytes: none for masks, whose rows are runs already; Paeth's for photos.
 *
 * @param {Uint8Array | Uint8ClampedArray} band
 * @param {Uint8Array | Uint8ClampedArray} above the row before the band
 * @param {number} stride
 * @param {number} channels
 * @returns {Uint8Array<ArrayBuffer>}
 */
function filtered(band, above, stride, channels) {
  const count = band.length / stride;
  const out = new Uint8Array(count * (stride + 1));
  for (let y = 0; y < count; y++) {
    const row = band.subarray(y * stride, (y + 1) * stride);
    const to = y * (stride + 1);
    if (channels === 1) {
      out.set(row, to + 1);
      continue;
    }
    const before = y ? band.subarray((y - 1) * stride, y * stride) : above;
    out[to] = 4;
    for (let i = 0; i < stride; i++) {
      const left = i < channels ? 0 : row[i - channels];
      const corner = i < channels ? 0 : before[i - channels];
      const up = before[i];
      const guess = left + up - corner;
      const [a, b, c] = [Math.abs(guess - left), Math.abs(guess - up), Math.abs(guess - corner)];
      out[to + 1 + i] = row[i] - (a <= b && a <= c ? left : b <= c ? up : corner);
    }
  }
  return out;
}

/** @param {ReadableStream<Uint8Array>} stream @param {Uint8Array<ArrayBuffer>[]} parts receives the chunks of data */
async function collect(stream, parts) {
  const reader = stream.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    parts.push(...chunk("IDAT", value));
  }
}

/**
 * @param {string} kind
 * @param {Uint8Array} data
 * @returns {Uint8Array<ArrayBuffer>[]} length and kind, data, checksum
 */
function chunk(kind, data) {
  const body = new Uint8Array(4 + data.length);
  body.set([...kind].map((letter) => letter.charCodeAt(0)));
  body.set(data, 4);
  const [length, check] = [new Uint8Array(4), new Uint8Array(4)];
  new DataView(length.buffer).setUint32(0, data.length);
  new DataView(check.buffer).setUint32(0, crc32(body));
  return [length, body, check];
}
