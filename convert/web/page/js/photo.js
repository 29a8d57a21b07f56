/**
 * @file A file or blob as an upright photo, whose pixels are read in bands of rows.
 *
 * The browser decodes the file, without colour management, and a small canvas hands out its pixels band by band: one of
 * the photo's size would exceed what phones allow. Two kinds of file take another way: PNG files with alpha or 16 bits
 * (png.js), because a canvas would change their colours.
 */

import { readContainer } from "./container.js";
import { decodePng } from "./png.js";

/** @typedef {import("./types.js").Photo} Photo */

const BAND = 1 << 19; // pixels of a band
const MAX_CANVAS = 1 << 24; // pixels; the most that iOS allows
const MAX_PIXELS = 1 << 27;
const USE = "use a JPEG, PNG or WebP file";

/** An error with a message for the user. */
export class PhotoError extends Error {
  /** @param {string} message */
  constructor(message) {
    super(message);
    this.name = "PhotoError";
  }
}

/**
 * Pixels as they are stored, before the orientation is applied.
 *
 * @typedef {object} Stored
 * @property {number} width
 * @property {number} height
 * @property {(x: number, y: number, w: number, h: number) => Uint8ClampedArray<ArrayBuffer>} read RGBA of a window
 * @property {ImageBitmap | null} bitmap
 * @property {() => void} close
 */

/**
 * Open a photo.
 *
 * @param {Blob} blob
 * @param {string} name of the file, for messages
 * @returns {Promise<Photo>}
 * @throws {PhotoError} the file is broken or of an unknown kind
 */
export async function openPhoto(blob, name) {
  /** @type {Uint8Array<ArrayBuffer>} */
  let bytes;
  try {
    bytes = new Uint8Array(await blob.arrayBuffer());
  } catch {
    throw new PhotoError(`${name}: can't be read; open it again`);
  }
  if (!bytes.length) throw new PhotoError(`${name}: the file is empty; ${USE}`);
  const container = readContainer(bytes);
  if (!container.complete) throw new PhotoError(`${name}: damaged (its end is missing); copy it again`);
  /** @type {string[]} */
  const notes = [];
  const stored = await (container.straight ? openStraight(bytes, name) : openBitmap(container, blob.type, name, notes));
  if (stored.width * stored.height > MAX_PIXELS) {
    stored.close();
    throw new PhotoError(`${name}: ${stored.width} x ${stored.height} pixels are too many; make it smaller`);
  }
  return upright(stored, container.orientation, name, notes);
}

/** Lets the page draw a frame and handle input. @returns {Promise<void>} */
export function pause() {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(null);
  });
}

/**
 * The number of rows that are read at once.
 *
 * @param {number} width
 * @returns {number}
 */
export function bandRows(width) {
  return Math.max(1, Math.floor(BAND / width));
}

/**
 * @param {Uint8Array<ArrayBuffer>} bytes
 * @param {string} name
 * @returns {Promise<Stored>}
 */
async function openStraight(bytes, name) {
  const { width, height, rgb } = await decodePng(bytes, pause).catch(() => {
    throw new PhotoError(`${name}: damaged, or a kind of PNG that can't be read; save it again`);
  });
  return {
    width,
    height,
    bitmap: null,
    close() {},
    read(x, y, w, h) {
      const out = new Uint8ClampedArray(w * h * 4).fill(255);
      for (let row = 0, to = 0; row < h; row++) {
        let from = ((y + row) * width + x) * 3;
        for (let i = 0; i < w; i++, to += 4, from += 3) {
          out[to] = rgb[from];
          out[to + 1] = rgb[from + 1];
          out[to + 2] = rgb[from + 2];
        }
      }
      return out;
    },
  };
}

/**
 * @param {import("./container.js").Container} container
 * @param {string} type MIME type
 * @param {string} name
 * @param {string[]} notes
 * @returns {Promise<Stored>}
 */
async function openBitmap({ kind, parts }, type, name, notes) {
  const bitmap = await createImageBitmap(new Blob(parts, { type: kind ? `image/${kind}` : type }), {
    colorSpaceConversion: "none",
    premultiplyAlpha: "none",
  }).catch(() => {
    const kinds = /** @type {Record<string, string>} */ ({ heic: "HEIC", tiff: "TIFF", avif: "AVIF" });
    if (kind in kinds) throw new PhotoError(`${name}: this browser can't read ${kinds[kind]} files; ${USE}`);
    throw new PhotoError(`${name}: ${kind ? "damaged, or too large for this device" : "not a photo"}; ${USE}`);
  });
  const { width, height } = bitmap;
  const canvas = document.createElement("canvas");
  const context = canvas.getContext("2d", { willReadFrequently: true });
  if (!context) throw new PhotoError(`${name}: this browser has no canvas`);
  let transparent = false;
  return {
    width,
    height,
    bitmap,
    close() {
      bitmap.close();
      canvas.width = canvas.height = 0;
    },
    read(x, y, w, h) {
      if (canvas.width !== w || canvas.height !== h) [canvas.width, canvas.height] = [w, h];
      else context.clearRect(0, 0, w, h);
      context.imageSmoothingEnabled = false;
      context.drawImage(bitmap, x, y, w, h, 0, 0, w, h);
      const data = context.getImageData(0, 0, w, h, { colorSpace: "srgb" }).data;
      if (kind !== "jpeg" && kind !== "bmp" && kind !== "png" && overWhite(data) && !transparent) {
        transparent = true;
        notes.push("transparent pixels are shown on white; their colours can differ from Python's");
      }
      return data;
    },
  };
}

/** Put transparent pixels on white. @param {Uint8ClampedArray} rgba @returns {boolean} whether there were any */
function overWhite(rgba) {
  let found = false;
  for (let i = 3; i < rgba.length; i += 4) {
    const alpha = rgba[i];
    if (alpha === 255) continue;
    found = true;
    for (let c = i - 3; c < i; c++) rgba[c] = (rgba[c] * alpha + 255 * (255 - alpha)) / 255;
    rgba[i] = 255;
  }
  return found;
}

/**
 * @param {Stored} stored
 * @param {number} orientation EXIF's
 * @param {string} name
 * @param {string[]} notes
 * @returns {Promise<Photo>}
 */
async function upright(stored, orientation, name, notes) {
  const turned = orientation >= 5;
  const [width, height] = turned ? [stored.height, stored.width] : [stored.width, stored.height];
  /** @type {Photo["rows"]} */
  const rows = (y0, y1) => {
    if (!(y0 >= 0 && y0 < y1 && y1 <= height)) throw new RangeError(`rows ${y0} to ${y1} of ${height}`);
    return turned ? turnedRows(stored, orientation, y0, y1) : mirroredRows(stored, orientation, y0, y1);
  };
  const bitmap = orientation === 1 && stored.bitmap ? stored.bitmap : await draw(rows, width, height, name);
  return {
    name,
    width,
    height,
    rows,
    bitmap,
    notes,
    close() {
      stored.close();
      bitmap.close();
    },
  };
}

/** Orientations 1 to 4. @param {Stored} stored @param {number} orientation @param {number} y0 @param {number} y1 */
function mirroredRows(stored, orientation, y0, y1) {
  const { width, height } = stored;
  const [flipX, flipY] = [orientation === 2 || orientation === 3, orientation === 3 || orientation === 4];
  const band = stored.read(0, flipY ? height - y1 : y0, width, y1 - y0);
  if (!flipX && !flipY) return band;
  const from = pixels(band);
  const out = new Uint8ClampedArray(band.length);
  const to = pixels(out);
  for (let y = 0; y < y1 - y0; y++) {
    const start = (flipY ? y1 - y0 - 1 - y : y) * width;
    for (let x = 0; x < width; x++) to[y * width + x] = from[start + (flipX ? width - 1 - x : x)];
  }
  return out;
}

/** Orientations 5 to 8: a row is a stored column. @type {typeof mirroredRows} */
function turnedRows(stored, orientation, y0, y1) {
  const { width, height } = stored;
  const count = y1 - y0;
  const fromRight = orientation === 7 || orientation === 8; // the first row is the last stored column
  const fromBottom = orientation === 6 || orientation === 7; // the first pixel of a row is the last stored row's
  const band = stored.read(fromRight ? width - y1 : y0, 0, count, height);
  const from = pixels(band);
  const out = new Uint8ClampedArray(band.length);
  const to = pixels(out);
  for (let y = 0; y < count; y++) {
    const column = fromRight ? count - 1 - y : y;
    for (let x = 0; x < height; x++) to[y * height + x] = from[(fromBottom ? height - 1 - x : x) * count + column];
  }
  return out;
}

/** @param {Uint8ClampedArray<ArrayBuffer>} rgba @returns {Uint32Array} a number per pixel */
function pixels(rgba) {
  return new Uint32Array(rgba.buffer, rgba.byteOffset, rgba.length / 4);
}

/**
 * Draw the rows for display, smaller by a whole factor if the photo exceeds a canvas.
 *
 * @param {Photo["rows"]} rows
 * @param {number} width
 * @param {number} height
 * @param {string} name
 * @returns {Promise<ImageBitmap>}
 */
async function draw(rows, width, height, name) {
  const factor = Math.ceil(Math.sqrt((width * height) / MAX_CANVAS));
  const [band, whole] = [document.createElement("canvas"), document.createElement("canvas")];
  const [from, to] = [band.getContext("2d"), whole.getContext("2d")];
  if (!from || !to) throw new PhotoError(`${name}: this browser has no canvas`);
  [whole.width, whole.height] = [Math.max(1, Math.floor(width / factor)), Math.max(1, Math.floor(height / factor))];
  const step = Math.max(1, Math.floor(bandRows(width) / factor)) * factor; // whole rows of the target
  for (let y = 0; y < height; y += step) {
    const count = Math.min(step, height - y);
    [band.width, band.height] = [width, count];
    from.putImageData(new ImageData(new Uint8ClampedArray(rows(y, y + count)), width, count), 0, 0);
    to.drawImage(band, 0, 0, width, count, 0, y / factor, width / factor, count / factor);
    await pause();
  }
  const bitmap = await createImageBitmap(whole);
  for (const canvas of [band, whole]) canvas.width = canvas.height = 0; // frees the memory at once
  return bitmap;
}
