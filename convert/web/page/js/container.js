/**
 * @file What a photo's file says about itself: its kind, its orientation, whether it is complete, and whether a browser
 * would change its colours.
 *
 * Browsers disagree on where they apply an orientation. So it is read here, as Python does (EXIF, else XMP), and
 * removed from the bytes that the browser decodes.
 */

/**
 * @typedef {object} Container
 * @property {string} kind "jpeg", "png", "webp", "gif", "bmp", "avif", "heic", "tiff" or "" (unknown)
 * @property {number} orientation 1 to 8, EXIF's
 * @property {boolean} complete whether the file has its end
 * @property {boolean} straight a PNG file with alpha or 16 bits, which a canvas can't represent
 * @property {BlobPart[]} parts the file without its orientation
 */

const EXIF = "Exif\0\0";
const XMP_JPEG = "http://ns.adobe.com/xap/1.0/\0";
const XMP_PNG = "XML:com.adobe.xmp\0";
const ORIENTATION = 0x0112;

/**
 * @param {Uint8Array<ArrayBuffer>} bytes of the file; an orientation in a JPEG or WebP file is overwritten with 1
 * @returns {Container}
 */
export function readContainer(bytes) {
  const kind = kindOf(bytes);
  /** @type {Container} */
  const found = { kind, orientation: 0, complete: true, straight: false, parts: [bytes] };
  if (kind === "jpeg") readJpeg(bytes, found);
  else if (kind === "png") readPng(bytes, found);
  else if (kind === "webp") readWebp(bytes, found);
  if (!(found.orientation >= 1 && found.orientation <= 8)) found.orientation = 1;
  return found;
}

/** @param {Uint8Array} bytes @returns {string} */
function kindOf(bytes) {
  const start = text(bytes, 0, 12);
  const brand = start.slice(8);
  if (start.startsWith("\xff\xd8\xff")) return "jpeg";
  if (start.startsWith("\x89PNG\r\n\x1a\n")) return "png";
  if (start.startsWith("RIFF") && brand === "WEBP") return "webp";
  if (start.startsWith("GIF8")) return "gif";
  if (start.startsWith("BM")) return "bmp";
  if (start.startsWith("II*\0") || start.startsWith("MM\0*")) return "tiff";
  if (start.slice(4, 8) === "ftyp") return /^avi[fs]$/.test(brand) ? "avif" : "heic";
  return "";
}

/** @param {Uint8Array} bytes @param {Container} found */
function readJpeg(bytes, found) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  let xmp = 0;
  let at = 2;
  while (at + 4 <= bytes.length && bytes[at] === 0xff) {
    const marker = bytes[at + 1];
    if (marker === 0xff) {
      at += 1; // padding
      continue;
    }
    if (marker === 0xda || marker === 0xd9) break; // the pixels follow
    if (marker === 1 || (marker >= 0xd0 && marker <= 0xd8)) {
      at += 2;
      continue;
    }
    const size = view.getUint16(at + 2);
    const [from, to] = [at + 4, Math.min(bytes.length, at + 2 + size)];
    if (marker === 0xe1 && text(bytes, from, from + 6) === EXIF) {
      found.orientation ||= takeOrientation(bytes.subarray(from + 6, to));
    } else if (marker === 0xe1 && text(bytes, from, from + XMP_JPEG.length) === XMP_JPEG) {
      xmp ||= xmpOrientation(text(bytes, from, to));
    }
    at += 2 + size;
  }
  found.orientation ||= xmp;
  let end = bytes.length - 1; // other data can follow the end of the picture
  while (end > at && !(bytes[end] === 0xd9 && bytes[end - 1] === 0xff)) end--;
  found.complete = end > at;
}

/** @param {Uint8Array<ArrayBuffer>} bytes @param {Container} found */
function readPng(bytes, found) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  let xmp = 0;
  found.parts = [];
  found.complete = false;
  let kept = 0;
  for (let at = 8; at + 12 <= bytes.length; ) {
    const size = view.getUint32(at);
    const type = text(bytes, at + 4, at + 8);
    const [from, to] = [at + 8, at + 8 + size];
    if (to + 4 > bytes.length) break;
    if (type === "IHDR") found.straight = bytes[from + 8] === 16 || bytes[from + 9] >= 4;
    if (type === "tRNS") found.straight = true;
    if (type === "iTXt" && text(bytes, from, from + XMP_PNG.length) === XMP_PNG) {
      xmp ||= xmpOrientation(text(bytes, from, to));
    }
    if (type === "eXIf") {
      found.orientation ||= takeOrientation(bytes.slice(from, to));
      found.parts.push(bytes.subarray(kept, at));
      kept = to + 4;
    }
    if (type === "IEND") found.complete = true;
    at = to + 4;
  }
  found.parts.push(bytes.subarray(kept));
  found.orientation ||= xmp;
}

/** @param {Uint8Array} bytes @param {Container} found */
function readWebp(bytes, found) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  let xmp = 0;
  found.complete = bytes.length >= 8 + view.getUint32(4, true);
  for (let at = 12; at + 8 <= bytes.length; ) {
    const size = view.getUint32(at + 4, true);
    const type = text(bytes, at, at + 4);
    const [from, to] = [at + 8, Math.min(bytes.length, at + 8 + size)];
    if (type === "EXIF") {
      const skip = text(bytes, from, from + 6) === EXIF ? 6 : 0;
      found.orientation ||= takeOrientation(bytes.subarray(from + skip, to));
    } else if (type === "XMP ") {
      xmp ||= xmpOrientation(text(bytes, from, to));
    }
    at += 8 + size + (size % 2);
  }
  found.orientation ||= xmp;
}

/**
 * Read the orientation in a TIFF structure, and overwrite it with 1.
 *
 * @param {Uint8Array} tiff
 * @returns {number} 0 if there is none, or the structure is damaged
 */
function takeOrientation(tiff) {
  const order = text(tiff, 0, 2);
  if (tiff.length < 8 || (order !== "II" && order !== "MM")) return 0;
  const view = new DataView(tiff.buffer, tiff.byteOffset, tiff.length);
  const little = order === "II";
  const start = view.getUint32(4, little);
  if (start + 2 > tiff.length) return 0;
  const count = view.getUint16(start, little);
  for (let i = 0; i < count; i++) {
    const at = start + 2 + 12 * i;
    if (at + 12 > tiff.length) return 0;
    const [tag, type] = [view.getUint16(at, little), view.getUint16(at + 2, little)];
    if (tag !== ORIENTATION || type !== 3) continue;
    const value = view.getUint16(at + 8, little);
    view.setUint16(at + 8, 1, little);
    return value;
  }
  return 0;
}

/** @param {string} packet @returns {number} */
function xmpOrientation(packet) {
  return Number(/tiff:Orientation(?:="|>)([0-9])/.exec(packet)?.[1] ?? 0);
}

/** @param {Uint8Array} bytes @param {number} from @param {number} to @returns {string} one character per byte */
function text(bytes, from, to) {
  let out = "";
  for (const byte of bytes.subarray(from, to)) out += String.fromCharCode(byte);
  return out;
}
