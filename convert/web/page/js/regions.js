/**
 * @file Connected regions of a mask: fill small holes, drop small islands. Pixels are neighbours along sides and
 * corners.
 *
 * Masks stay run lengths. The stretches of equal pixels within a column are joined with those that they touch in the
 * column before, by a union-find.
 */

import { RunWriter } from "./runs.js";

/**
 * @typedef {object} Regions
 * @property {number[]} starts of each stretch, counted down the columns
 * @property {number[]} ends excluded
 * @property {number[]} region of each stretch: the number of one of its stretches
 * @property {Map<number, { area: number, first: number }>} found pixels of each region, and its first pixel counted
 *   along the rows
 */

/**
 * @param {ArrayLike<number>} counts
 * @param {number} width
 * @param {number} height
 * @param {0 | 1} value of the pixels
 * @returns {Regions}
 */
function findRegions(counts, width, height, value) {
  /** @type {number[]} */
  const starts = [];
  /** @type {number[]} */
  const ends = [];
  for (let i = 0, at = 0; i < counts.length; at += counts[i++]) {
    if (i % 2 !== value) continue;
    for (let start = at; start < at + counts[i]; ) {
      const end = Math.min(at + counts[i], (Math.floor(start / height) + 1) * height);
      starts.push(start);
      ends.push(end);
      start = end;
    }
  }
  const parent = starts.map((_, i) => i);
  /** @param {number} i */
  const root = (i) => {
    while (parent[i] !== i) {
      parent[i] = parent[parent[i]];
      i = parent[i];
    }
    return i;
  };
  for (let i = 0, before = 0; i < starts.length; i++) {
    const column = Math.floor(starts[i] / height);
    // Stretches of the column before, shifted by a column, that end at or after this one's start can touch it.
    while (before < i && ends[before] + height < starts[i]) before++;
    for (let j = before; j < i && starts[j] + height <= ends[i]; j++) {
      if (Math.floor(starts[j] / height) === column - 1 && ends[j] + height >= starts[i]) {
        const [a, b] = [root(i), root(j)];
        parent[Math.max(a, b)] = Math.min(a, b);
      }
    }
  }
  /** @type {Regions["found"]} */
  const found = new Map();
  const region = starts.map((start, i) => {
    const r = root(i);
    const first = (start % height) * width + Math.floor(start / height);
    const entry = found.get(r) ?? { area: 0, first };
    entry.area += ends[i] - start;
    entry.first = Math.min(entry.first, first);
    found.set(r, entry);
    return r;
  });
  return { starts, ends, region, found };
}

/**
 * Set the regions of unset pixels with fewer than `below` pixels; those at the photo's border count as well.
 *
 * @param {Uint32Array} counts
 * @param {number} width
 * @param {number} height
 * @param {number} below
 * @returns {Uint32Array}
 */
export function fillHoles(counts, width, height, below) {
  if (below <= 1) return counts;
  const { starts, ends, region, found } = findRegions(counts, width, height, 0);
  const writer = new RunWriter(width * height);
  let at = 0;
  starts.forEach((start, i) => {
    if (/** @type {{ area: number }} */ (found.get(region[i])).area < below) return;
    if (start > at) writer.add(at, start);
    at = ends[i];
  });
  if (at < width * height) writer.add(at, width * height);
  return writer.finish();
}

/**
 * Clear the regions with fewer than `below` pixels; if all are as small as that, the largest one stays.
 *
 * @param {Uint32Array} counts
 * @param {number} width
 * @param {number} height
 * @param {number} below
 * @returns {Uint32Array}
 */
export function dropIslands(counts, width, height, below) {
  if (below <= 1) return counts;
  const { starts, ends, region, found } = findRegions(counts, width, height, 1);
  const kept = new Set([...found].filter(([, { area }]) => area >= below).map(([r]) => r));
  if (kept.size === found.size) return counts; // also of an empty mask
  if (!kept.size) {
    // Of equal regions the one that comes first along the rows, as in Python.
    const [[largest]] = [...found].sort(([, a], [, b]) => b.area - a.area || a.first - b.first);
    kept.add(largest);
  }
  const writer = new RunWriter(width * height);
  starts.forEach((start, i) => {
    if (kept.has(region[i])) writer.add(start, ends[i]);
  });
  return writer.finish();
}

/**
 * Fill holes, then drop islands; 0 leaves either as it is.
 *
 * @param {Uint32Array} counts
 * @param {number} width
 * @param {number} height
 * @param {number} holes
 * @param {number} islands
 * @returns {Uint32Array}
 */
export function clean(counts, width, height, holes, islands) {
  return dropIslands(fillHoles(counts, width, height, holes), width, height, islands);
}
