/** @file The start-up check: what a backend computes on this machine, beside what Python computed. */

import { fromString, decodeRuns } from "./runs.js";

/** @typedef {import("./types.js").Check} Check */

/**
 * vectors/check.json.
 *
 * @typedef {object} CheckVectors
 * @property {string} photo file below vectors/
 * @property {number} step every so many logits are compared along each axis
 * @property {{ points: [number, number, number][], box: [number, number, number, number] | null, masks: string[],
 *   logits: string }[]} prompts masks: the four masks (s s) as COCO's text; logits: every `step`th row and column of
 *   the four masks' logits, float32, base64
 */

const MIN_UNION = 256; // pixels in the union of two low-resolution masks; below that, one pixel weighs too much

/**
 * Compare a prompt's logits with the expected ones.
 *
 * @param {Float32Array} logits (4 s s)
 * @param {CheckVectors["prompts"][number]} expected
 * @param {number} side s
 * @param {number} step
 * @returns {{ overlap: number, error: number }} smallest IoU of the masks, and root mean square of the logits'
 *   difference over that of the expected logits
 */
export function compare(logits, { masks, logits: sample }, side, step) {
  let overlap = 1;
  masks.forEach((text, m) => {
    const expected = decodeRuns(fromString(text), side, side);
    let [shared, union] = [0, 0];
    for (let i = 0; i < side * side; i++) {
      const set = logits[m * side * side + i] > 0;
      if (set && expected[i]) shared++;
      if (set || expected[i]) union++;
    }
    if (union >= MIN_UNION) overlap = Math.min(overlap, shared / union);
  });
  const bytes = Uint8Array.from(atob(sample), (c) => c.charCodeAt(0));
  const values = new DataView(bytes.buffer);
  let [difference, size, at] = [0, 0, 0];
  for (let m = 0; m < masks.length; m++) {
    for (let y = 0; y < side; y += step) {
      for (let x = 0; x < side; x += step, at += 4) {
        const reference = values.getFloat32(at, true);
        difference += (logits[(m * side + y) * side + x] - reference) ** 2;
        size += reference ** 2;
      }
    }
  }
  return { overlap, error: Math.sqrt(difference / size) };
}

/**
 * Why a check wasn't passed.
 *
 * @param {Check} check
 * @param {{ overlap: number, logits: number }} tolerance
 * @returns {string} empty if it was
 */
export function fault({ worstOverlap, logitsError }, { overlap, logits }) {
  if (!(worstOverlap >= overlap)) return `masks differ (overlap ${worstOverlap.toFixed(3)}, must be ${overlap})`;
  if (!(logitsError <= logits)) return `logits differ (by ${logitsError.toPrecision(2)}, must be ${logits} or less)`;
  return "";
}
