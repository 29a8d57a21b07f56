/** @file Prompts in pixels of the photo as the decoder's inputs, and their checks. */

/** @typedef {import("./types.js").Prompt} Prompt */
/** @typedef {import("./types.js").ModelInfo} ModelInfo */

const TOP_LEFT = 2;
const BOTTOM_RIGHT = 3;
const MIN_SIDE = 0.01; // px; the corners of a narrower box can coincide in the frame

/** A prompt that can't be used; the message is for the user. */
export class PromptError extends Error {
  /** @param {string} message */
  constructor(message) {
    super(message);
    this.name = "PromptError";
  }
}

/**
 * Check a prompt against its photo.
 *
 * @param {Prompt} prompt
 * @param {number} width of the photo
 * @param {number} height
 * @throws {PromptError}
 */
export function checkPrompt({ points, box }, width, height) {
  const photo = `the photo, which is ${width} x ${height} pixels`;
  if (!points.length && !box) throw new PromptError("no prompt: add a point or a box");
  if (box) {
    const [x0, y0, x1, y1] = box;
    if (!box.every(Number.isFinite)) throw new PromptError("box: expected four finite numbers");
    if (x1 - x0 < MIN_SIDE || y1 - y0 < MIN_SIDE) throw new PromptError("box: has no area");
    if (x0 < 0 || y0 < 0 || x1 > width || y1 > height) throw new PromptError(`box: not within ${photo}`);
  }
  for (const [x, y, label] of points) {
    if (label !== 0 && label !== 1) throw new PromptError("point: the label must be 1 (inside) or 0 (outside)");
    if (!(x >= 0 && x <= width && y >= 0 && y <= height)) throw new PromptError(`point: not on ${photo}`);
  }
}

/**
 * Coordinates in the frame and labels, box first.
 *
 * @param {Prompt} prompt
 * @param {{ width: number, height: number, filled: [number, number] }} embedding
 * @returns {{ coords: Float32Array, labels: Float32Array }} (n 2) and (n)
 */
export function promptInputs({ points, box }, { width, height, filled }) {
  const corners = box ? [[box[0], box[1], TOP_LEFT], [box[2], box[3], BOTTOM_RIGHT]] : [];
  const all = [...corners, ...points];
  const coords = new Float32Array(2 * all.length);
  const labels = new Float32Array(all.length);
  const [byX, byY] = [filled[1] / width, filled[0] / height];
  all.forEach(([x, y, label], i) => {
    coords[2 * i] = x * byX;
    coords[2 * i + 1] = y * byY;
    labels[i] = label;
  });
  return { coords, labels };
}
