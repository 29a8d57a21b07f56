/** @file Logits to masks. */

/** @typedef {import("./types.js").Embedding} Embedding */

/**
 * The mask of low-resolution logits at a display size, synchronously.
 *
 * @param {Float32Array} logits (s s)
 * @param {Pick<Embedding, "filled">} embedding
 * @param {number} imageSize side of the model's frame, `info.image_size`
 * @param {number} width of the result
 * @param {number} height
 * @returns {Uint8Array} (h w) 0 or 1
 */
export function maskAt(logits, embedding, imageSize, width, height) {
  throw new Error(`not yet ${logits.length} ${embedding.filled} ${imageSize} ${width} ${height}`);
}
