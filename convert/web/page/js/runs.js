/** @file COCO's run-length codes. */

/** @param {Uint32Array} counts @param {number} width @param {number} height @returns {Uint8Array} (h w) 0 or 1 */
export function decodeRuns(counts, width, height) {
  throw new Error(`not yet ${counts.length} ${width} ${height}`);
}

/** @param {ArrayLike<number>} mask (h w) @param {number} width @param {number} height @returns {Uint32Array} */
export function encodeRuns(mask, width, height) {
  throw new Error(`not yet ${mask.length} ${width} ${height}`);
}

/** COCO's compressed text. @param {ArrayLike<number>} counts @returns {string} */
export function toString(counts) {
  throw new Error(`not yet ${counts.length}`);
}

/** @param {string} text @returns {Uint32Array} @throws {RangeError} not such a text */
export function fromString(text) {
  throw new Error(`not yet ${text.length}`);
}

/** x, y, width, height; zeros if empty. @param {Uint32Array} counts @param {number} height @returns {[number, number, number, number]} */
export function boxOf(counts, height) {
  throw new Error(`not yet ${counts.length} ${height}`);
}

/** Set pixels. @param {ArrayLike<number>} counts @returns {number} */
export function areaOf(counts) {
  throw new Error(`not yet ${counts.length}`);
}
