/**
 * @file Everything mode: masks of all objects of a photo, from a grid of points (SAM, appendix B); the rules of
 * Python's `portable/everything.py` and `portable/scanning.py`. Runs in the worker.
 */

import { cropBoxes, isCut, placed, pointGrid, suppress } from "./crops.js";
import { Upscaler } from "./masks.js";
import { promptInputs } from "./prompts.js";
import { clean } from "./regions.js";
import { areaOf, boxOf } from "./runs.js";

/** @typedef {import("./types.js").EverythingOptions} EverythingOptions */
/** @typedef {import("./types.js").FoundMask} FoundMask */
/** @typedef {import("./runtime.js").Encoded} Encoded */
/** @typedef {import("./crops.js").Box} Box */

/** @type {Required<EverythingOptions>} */
export const DEFAULTS = {
  pointsPerSide: 32,
  scoreThreshold: 0.88,
  stabilityThreshold: 0.95,
  stabilityOffset: 1,
  boxNms: 0.7,
  cropLayers: 0,
  cropNms: 0.7,
  cropOverlap: 512 / 1500,
  cropPointsDownscale: 1,
  minRegionArea: 0,
  coarseToFine: false,
  minArea: 0,
  maxMasks: 0,
};
const PASSES = [4, 2, 1]; // coarse to fine: every 4th point along each side, every 2nd, all
const BREATH = 50; // ms between two looks at the messages

/**
 * What everything mode needs of the worker.
 *
 * @typedef {object} Tools
 * @property {import("./types.js").ModelInfo} info
 * @property {(encoded: Encoded, coords: Float32Array, labels: Float32Array)
 *   => Promise<{ logits: Float32Array, scores: Float32Array }>} decode
 * @property {(box: Box) => Promise<Encoded>} crop encodes a crop
 * @property {() => Promise<void>} pause lets messages arrive; throws if the call was aborted
 * @property {(progress: { done: number, total: number, found: number }) => void} onProgress
 */

/**
 * A mask while it is searched for; its box holds the outermost pixels.
 *
 * @typedef {{ counts: Uint32Array, box: Box, score: number, stability: number, point: [number, number],
 *   crop: Box }} Candidate
 */

/**
 * @param {Encoded} whole the photo
 * @param {EverythingOptions} options
 * @param {Tools} tools
 * @returns {Promise<FoundMask[]>} by falling score; with crops, those of smaller crops first
 * @throws {RangeError} an option out of range
 */
export async function findEverything(whole, options, tools) {
  const chosen = { ...DEFAULTS, ...options };
  checkOptions(chosen);
  const { width, height } = whole;
  const grids = Array.from({ length: chosen.cropLayers + 1 }, (_, layer) =>
    pointGrid(Math.trunc(chosen.pointsPerSide / chosen.cropPointsDownscale ** layer)));
  const crops = cropBoxes(width, height, chosen.cropLayers, chosen.cropOverlap);
  const total = crops.reduce((sum, { layer }) => sum + grids[layer].length, 0);
  let done = 0;
  /** @type {Candidate[]} */
  let masks = [];
  for (const { box, layer } of crops) {
    const encoded = layer ? await tools.crop(box) : whole;
    const [before, found] = [done, masks.length];
    const some = await searchCrop(encoded, box, whole, grids[layer], chosen, {
      ...tools,
      onProgress: (now) => tools.onProgress({ done: before + now.done, total, found: found + now.found }),
    });
    masks = masks.concat(some);
    done += grids[layer].length;
  }
  if (crops.length > 1) {
    const smallerFirst = masks.map(({ crop: [x0, y0, x1, y1] }) => Math.fround(1 / Math.fround((x1 - x0) * (y1 - y0))));
    masks = suppress(masks.map(({ box }) => box), smallerFirst, chosen.cropNms).map((i) => masks[i]);
  }
  if (chosen.minRegionArea) masks = cleaned(masks, width, height, chosen);
  let records = masks.map(({ counts, box: [x0, y0, x1, y1], score, stability, point }) => {
    const area = areaOf(counts);
    /** @type {Box} */
    const box = area ? [x0, y0, x1 - x0 + 1, y1 - y0 + 1] : [0, 0, 0, 0];
    return { counts, box, area, score, stability, point };
  });
  if (chosen.minArea) records = records.filter(({ area }) => area >= chosen.minArea);
  if (chosen.maxMasks && records.length > chosen.maxMasks) {
    const order = records.map((_, i) => i).sort((a, b) => records[b].score - records[a].score);
    const best = new Set(order.slice(0, chosen.maxMasks));
    records = records.filter((_, i) => best.has(i));
  }
  return records;
}

/**
 * @param {Encoded} encoded the crop
 * @param {Box} crop
 * @param {{ width: number, height: number }} photo
 * @param {[number, number][]} grid
 * @param {Required<EverythingOptions>} options
 * @param {Tools} tools
 * @returns {Promise<Candidate[]>} in pixels of the photo
 */
async function searchCrop(encoded, crop, photo, grid, options, tools) {
  const { width, height, filled } = encoded;
  const { mask_size: side, image_size: size } = tools.info;
  const points = grid.map(([x, y]) => /** @type {[number, number]} */ ([x * width, y * height]));
  const upscaler = new Upscaler(side, size, filled, width, height);
  const covered = options.coarseToFine ? new Uint8Array(width * height) : null; // column by column
  const minScore = options.scoreThreshold > 0 ? Math.fround(options.scoreThreshold) : -Infinity;
  /** @type {Candidate[]} */
  const masks = [];
  let [done, paused] = [0, performance.now()];
  for (const group of covered ? passes(grid.length) : [points.map((_, i) => i)]) {
    const open = group.filter((i) => !covered?.[Math.trunc(points[i][0]) * height + Math.trunc(points[i][1])]);
    done += group.length - open.length;
    for (const i of open) {
      const { coords, labels } = promptInputs({ points: [[...points[i], 1]], box: null }, encoded);
      const { logits, scores } = await tools.decode(encoded, coords, labels);
      /** @type {{ counts: Uint32Array, area: number } | null} */
      let smallest = null;
      for (let m = 1; m < 4; m++) {
        if (!(scores[m] > minScore)) continue;
        const mask = logits.subarray(m * side * side, (m + 1) * side * side);
        const found = upscaler.measure(mask, options.stabilityOffset);
        if (options.stabilityThreshold > 0 && found.stability < options.stabilityThreshold) continue;
        if (found.area && (!smallest || found.area < smallest.area)) smallest = found;
        const box = outermost(found.box);
        if (isCut(box, crop, photo.width, photo.height)) continue;
        masks.push({
          counts: placed(found.counts, crop, photo.width, photo.height),
          box: /** @type {Box} */ (box.map((value, k) => value + crop[k % 2])),
          score: scores[m],
          stability: found.stability,
          point: [points[i][0] + crop[0], points[i][1] + crop[1]],
          crop,
        });
      }
      if (covered && smallest) cover(covered, smallest.counts);
      done++;
      if (performance.now() - paused > BREATH) {
        tools.onProgress({ done, total: grid.length, found: masks.length });
        await tools.pause();
        paused = performance.now();
      }
    }
  }
  const kept = suppress(masks.map(({ box }) => box), masks.map(({ score }) => score), options.boxNms);
  tools.onProgress({ done: grid.length, total: grid.length, found: kept.length });
  return kept.map((i) => masks[i]);
}

/**
 * Fill small holes and drop small parts; suppress what has become the same, changed masks first.
 *
 * @param {Candidate[]} masks
 * @param {number} width
 * @param {number} height
 * @param {Required<EverythingOptions>} options
 * @returns {Candidate[]}
 */
function cleaned(masks, width, height, { minRegionArea, boxNms, cropNms }) {
  /** @type {number[]} */
  const unchanged = [];
  const after = masks.map((mask) => {
    const counts = clean(mask.counts, width, height, minRegionArea, minRegionArea);
    const same = counts.length === mask.counts.length && counts.every((count, i) => count === mask.counts[i]);
    unchanged.push(same ? 1 : 0);
    return same ? mask : { ...mask, counts, box: outermost(boxOf(counts, height)) };
  });
  const kept = suppress(after.map(({ box }) => box), unchanged, Math.max(boxNms, cropNms));
  return kept.map((i) => after[i]);
}

/** @param {Box} box x, y, width, height @returns {Box} the outermost pixels; zeros if there are none */
function outermost([x, y, width, height]) {
  return width ? [x, y, x + width - 1, y + height - 1] : [0, 0, 0, 0];
}

/** Mark a mask's pixels. @param {Uint8Array} covered @param {Uint32Array} counts */
function cover(covered, counts) {
  for (let i = 0, at = 0; i < counts.length; at += counts[i++]) if (i % 2) covered.fill(1, at, at + counts[i]);
}

/**
 * @param {number} points of a square grid
 * @returns {number[][]} indices of every 4th point per side, every 2nd, and the rest
 */
function passes(points) {
  const side = Math.round(Math.sqrt(points));
  /** @type {number[][]} */
  const groups = PASSES.map(() => []);
  for (let i = 0; i < points; i++) {
    const [row, column] = [Math.floor(i / side), i % side];
    const level = PASSES.findIndex((step) => row % step === step >> 1 && column % step === step >> 1);
    groups[level].push(i);
  }
  return groups;
}

/** @param {Required<EverythingOptions>} options @throws {RangeError} */
function checkOptions(options) {
  const { pointsPerSide, cropLayers, cropPointsDownscale } = options;
  /** @type {Partial<Record<string, [number, number]>>} */
  const ranges = {
    pointsPerSide: [1, 1024], cropLayers: [0, 6], scoreThreshold: [0, 1], stabilityThreshold: [0, 1], boxNms: [0, 1],
    cropNms: [0, 1], cropOverlap: [0, 0.99], cropPointsDownscale: [1, Infinity], stabilityOffset: [0, Infinity],
    minRegionArea: [0, Infinity], minArea: [0, Infinity], maxMasks: [0, Infinity],
  };
  for (const [name, value] of Object.entries(options)) {
    const range = ranges[name];
    if (range && !(Number(value) >= range[0] && Number(value) <= range[1])) {
      throw new RangeError(`${name}: expected a number from ${range[0]} to ${range[1]}, got ${value}`);
    }
  }
  if (!Number.isInteger(pointsPerSide) || !Number.isInteger(cropLayers)) {
    throw new RangeError("pointsPerSide and cropLayers: expected whole numbers");
  }
  if (pointsPerSide / cropPointsDownscale ** cropLayers < 1) {
    throw new RangeError("cropPointsDownscale: leaves no point in the last layer of crops");
  }
}
