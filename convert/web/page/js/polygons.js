/**
 * @file Polygons to run lengths, by the rule of COCO's tools, so that an imported polygon is the mask that training
 * reads: the outline is drawn on a grid five times finer, and each column of pixels changes between background and
 * object where the outline crosses its middle.
 */

import { RunWriter } from "./runs.js";

const FINE = 5; // of the finer grid
const CORNERS = 64; // of a circle

/**
 * @param {ArrayLike<number>} polygon x, y, x, y, ... in pixels
 * @param {number} width of the photo
 * @param {number} height
 * @returns {Uint32Array} run lengths
 */
export function polygonRuns(polygon, width, height) {
  /** @type {number[]} */
  const changes = []; // positions, counted down the columns, where background and object change
  const count = polygon.length >> 1;
  const fine = Array.from({ length: 2 * count }, (_, i) => Math.trunc(FINE * polygon[i] + 0.5));
  for (let i = 0; i < count; i++) {
    const next = (i + 1) % count;
    crossings(fine[2 * i], fine[2 * i + 1], fine[2 * next], fine[2 * next + 1], (column, row) => {
      if (column >= 0 && column < width) changes.push(column * height + Math.min(height, Math.max(0, row)));
    });
  }
  changes.sort((a, b) => a - b);
  const writer = new RunWriter(width * height);
  for (let i = 0; i + 1 < changes.length; i += 2) {
    if (changes[i + 1] > changes[i]) writer.add(changes[i], changes[i + 1]);
  }
  return writer.finish();
}

/**
 * Call back for every column whose middle a side of the polygon crosses.
 *
 * @param {number} x0 on the finer grid
 * @param {number} y0
 * @param {number} x1
 * @param {number} y1
 * @param {(column: number, row: number) => void} found the first row of pixels below the crossing
 */
function crossings(x0, y0, x1, y1, found) {
  const [across, down] = [Math.abs(x1 - x0), Math.abs(y1 - y0)];
  if (!across) return;
  const flat = across >= down;
  // Always drawn from left to right, or from top to bottom, whatever the polygon's direction.
  if (flat ? x0 > x1 : y0 > y1) [x0, y0, x1, y1] = [x1, y1, x0, y0];
  const slope = flat ? (y1 - y0) / across : (x1 - x0) / down;
  let [x, y] = [x0, y0];
  for (let t = 1; t <= Math.max(across, down); t++) {
    const nextX = flat ? x0 + t : Math.trunc(x0 + slope * t + 0.5);
    const nextY = flat ? Math.trunc(y0 + slope * t + 0.5) : y0 + t;
    const left = Math.min(x, nextX);
    const column = (left - 2) / FINE; // the middle of column 0 is between 2 and 3 on the finer grid
    if (x !== nextX && Number.isInteger(column)) found(column, Math.ceil((Math.min(y, nextY) + 0.5) / FINE - 0.5));
    [x, y] = [nextX, nextY];
  }
}

/**
 * @param {[number, number]} centre
 * @param {[number, number]} edge a point of the circle
 * @returns {number[]} polygon
 */
export function circle([x0, y0], [x1, y1]) {
  const radius = Math.hypot(x1 - x0, y1 - y0);
  return Array.from({ length: CORNERS }, (_, i) => (i * 2 * Math.PI) / CORNERS).flatMap((angle) => [
    x0 + radius * Math.cos(angle),
    y0 + radius * Math.sin(angle),
  ]);
}

/**
 * The union of masks.
 *
 * @param {ArrayLike<number>[]} masks run lengths
 * @param {number} total pixels of the photo
 * @returns {Uint32Array}
 */
export function union(masks, total) {
  /** @type {[number, number][]} */
  const stretches = [];
  for (const counts of masks) {
    let at = 0;
    for (let i = 0; i < counts.length; at += counts[i++]) if (i % 2 && counts[i]) stretches.push([at, at + counts[i]]);
  }
  stretches.sort((a, b) => a[0] - b[0]);
  const writer = new RunWriter(total);
  for (let i = 0; i < stretches.length; ) {
    const [start] = stretches[i];
    let end = stretches[i++][1];
    while (i < stretches.length && stretches[i][0] <= end) end = Math.max(end, stretches[i++][1]);
    writer.add(start, end);
  }
  return writer.finish();
}
