/**
 * @file The crops and point grids of everything mode, and the suppression of boxes (SAM, appendix B); the rules of
 * Python's `portable/crops.py` and `portable/suppression.py`. Boxes are x0, y0, x1, y1; those of crops exclude the end,
 * those of masks are the outermost pixels.
 */

import { RunWriter } from "./runs.js";

/** @typedef {[number, number, number, number]} Box */

const f32 = Math.fround;
const EDGE = 20; // px; a mask that ends so close to the edge of a crop is cut off by it

/**
 * @param {number} perSide
 * @returns {[number, number][]} x, y of the centres of equal cells of the unit square, row by row
 */
export function pointGrid(perSide) {
  const offset = 1 / (2 * perSide);
  const step = (1 - offset - offset) / (perSide - 1);
  const line = Array.from({ length: perSide }, (_, i) => (i ? i * step + offset : offset));
  if (perSide > 1) line[perSide - 1] = 1 - offset; // as NumPy's linspace, to the last bit
  return line.flatMap((y) => line.map((x) => /** @type {[number, number]} */ ([x, y])));
}

/**
 * @param {number} width of the photo
 * @param {number} height
 * @param {number} layers
 * @param {number} overlap
 * @returns {{ box: Box, layer: number }[]} all crops, the whole photo first; layer i has 2^i x 2^i, column by column
 */
export function cropBoxes(width, height, layers, overlap) {
  const crops = [{ box: /** @type {Box} */ ([0, 0, width, height]), layer: 0 }];
  for (let layer = 1; layer <= layers; layer++) {
    const perSide = 2 ** layer;
    const shared = Math.trunc((overlap * Math.min(height, width) * 2) / perSide);
    const [w, h] = [width, height].map((side) => Math.ceil((shared * (perSide - 1) + side) / perSide));
    for (let i = 0; i < perSide; i++) {
      for (let j = 0; j < perSide; j++) {
        const [x, y] = [(w - shared) * i, (h - shared) * j];
        if (x >= width || y >= height) continue; // a photo of very few pixels
        crops.push({ box: [x, y, Math.min(x + w, width), Math.min(y + h, height)], layer });
      }
    }
  }
  return crops;
}

/**
 * @param {Box} box of a mask, in pixels of its crop
 * @param {Box} crop
 * @param {number} width of the photo
 * @param {number} height
 * @returns {boolean} whether the mask ends at an edge of its crop that is not an edge of the photo
 */
export function isCut(box, crop, width, height) {
  const photo = [0, 0, width, height];
  return box.some((value, i) => {
    const at = value + crop[i % 2];
    return Math.abs(at - crop[i]) <= EDGE && Math.abs(at - photo[i]) > EDGE;
  });
}

/**
 * Run lengths of a crop as those of the photo.
 *
 * @param {Uint32Array} counts
 * @param {Box} crop
 * @param {number} width of the photo
 * @param {number} height
 * @returns {Uint32Array}
 */
export function placed(counts, [x0, y0, x1, y1], width, height) {
  if (x1 - x0 === width && y1 - y0 === height) return counts;
  const rows = y1 - y0;
  const writer = new RunWriter(width * height);
  for (let i = 0, at = 0; i < counts.length; at += counts[i++]) {
    if (i % 2 === 0) continue;
    for (let start = at; start < at + counts[i]; ) {
      const column = Math.floor(start / rows);
      const end = Math.min(at + counts[i], (column + 1) * rows);
      const shift = (x0 + column) * height + y0 - column * rows;
      writer.add(start + shift, end + shift);
      start = end;
    }
  }
  return writer.finish();
}

/**
 * Non-maximum suppression: a box goes if its IoU with a remaining one of higher score exceeds the threshold.
 *
 * @param {Box[]} boxes of masks
 * @param {number[]} scores
 * @param {number} threshold
 * @returns {number[]} indices that remain, by falling score; equal scores keep their order
 */
export function suppress(boxes, scores, threshold) {
  const order = boxes.map((_, i) => i).sort((a, b) => scores[b] - scores[a]);
  const areas = boxes.map(([x0, y0, x1, y1]) => f32((x1 - x0) * (y1 - y0)));
  const limit = f32(threshold);
  /** @type {number[]} */
  const kept = [];
  for (const i of order) {
    const [x0, y0, x1, y1] = boxes[i];
    const covered = kept.some((k) => {
      const other = boxes[k];
      const width = Math.max(0, Math.min(x1, other[2]) - Math.max(x0, other[0]));
      const height = Math.max(0, Math.min(y1, other[3]) - Math.max(y0, other[1]));
      const shared = f32(width * height);
      return shared > f32(limit * f32(f32(areas[k] + areas[i]) - shared));
    });
    if (!covered) kept.push(i);
  }
  return kept;
}
