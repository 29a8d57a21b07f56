/**
 * @file Writes ZIP files without compression: photos and run lengths are compressed already.
 * https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
 */

import { crc32 } from "./crc.js";

const LIMIT = 0xfff00000; // bytes; larger files would need the 64-bit form
const UTF8 = 0x0800; // flag: names are UTF-8

/**
 * @typedef {object} Entry
 * @property {string} name with "/" between folders
 * @property {Blob} blob
 */

/**
 * @param {Entry[]} entries
 * @param {Date} [date] of all entries
 * @returns {Promise<Blob>}
 * @throws {RangeError} more than 4 GB, or more than 65,535 entries
 */
export async function writeZip(entries, date = new Date()) {
  const total = entries.reduce((sum, { blob }) => sum + blob.size + 1000, 0);
  if (total > LIMIT || entries.length > 0xffff) throw new RangeError("too much for one ZIP file (4 GB)");
  const time = (date.getHours() << 11) | (date.getMinutes() << 5) | (date.getSeconds() >> 1);
  const day = (Math.max(0, date.getFullYear() - 1980) << 9) | ((date.getMonth() + 1) << 5) | date.getDate();
  /** @type {BlobPart[]} */
  const files = [];
  /** @type {BlobPart[]} */
  const directory = [];
  let [offset, directorySize] = [0, 0];
  for (const { name, blob } of entries) {
    const bytes = new TextEncoder().encode(name);
    const check = await checksum(blob);
    const shared = [2, 20, 2, UTF8, 2, 0, 2, time, 2, day, 4, check, 4, blob.size, 4, blob.size, 2, bytes.length, 2, 0];
    const local = fields([4, 0x04034b50, ...shared]);
    const central = fields([4, 0x02014b50, 2, 20, ...shared, 2, 0, 2, 0, 2, 0, 4, 0, 4, offset]);
    files.push(local, bytes, blob);
    directory.push(central, bytes);
    offset += local.length + bytes.length + blob.size;
    directorySize += central.length + bytes.length;
  }
  const count = entries.length;
  const end = fields([4, 0x06054b50, 2, 0, 2, 0, 2, count, 2, count, 4, directorySize, 4, offset, 2, 0]);
  return new Blob([...files, ...directory, end], { type: "application/zip" });
}

/** @param {number[]} pairs number of bytes (2 or 4) and value, in turn @returns {Uint8Array<ArrayBuffer>} */
function fields(pairs) {
  const bytes = [];
  for (let i = 0; i < pairs.length; i += 2) {
    for (let k = 0; k < pairs[i]; k++) bytes.push((pairs[i + 1] >>> (8 * k)) & 255);
  }
  return Uint8Array.from(bytes);
}

/** @param {Blob} blob @returns {Promise<number>} */
async function checksum(blob) {
  const part = 1 << 22;
  let value = 0;
  for (let at = 0; at < blob.size; at += part) {
    value = crc32(new Uint8Array(await blob.slice(at, at + part).arrayBuffer()), value);
  }
  return value;
}
