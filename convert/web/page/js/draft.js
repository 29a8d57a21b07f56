/** @file From the prompt in progress to its masks: four predictions, the chosen one at the photo's pixels. */

import { outlines, pathOf, toPath } from "./contours.js";
import { maskAt } from "./masks.js";
import { isEmpty } from "./work.js";

/** @typedef {import("./types.js").Model} Model */
/** @typedef {import("./types.js").Embedding} Embedding */
/** @typedef {import("./types.js").Mask} Mask */
/** @typedef {import("./types.js").Prediction} Prediction */
/** @typedef {import("./types.js").Prompt} Prompt */
/** @typedef {import("./work.js").Draft} Draft */

/** @typedef {1 | 3 | 4} Amount of masks to choose from; 1: the single mask, 3: part to whole, 4: all */

const QUICK = 1024; // pixels along the longer side of a mask that is shown before the exact one
const PREVIEW = 640;

/** @param {Amount} amount @returns {number[]} indices of the masks */
export function shown(amount) {
  return { 1: [0], 3: [1, 2, 3], 4: [0, 1, 2, 3] }[amount];
}

/**
 * @param {Prediction} prediction
 * @param {number} index
 * @returns {Float32Array} logits (s s) of one mask
 */
export function logitsOf({ logits }, index) {
  const size = logits.length / 4;
  return logits.subarray(index * size, (index + 1) * size);
}

/**
 * The outlines of logits at a size for the screen.
 *
 * @param {Float32Array} logits (s s)
 * @param {Embedding} embedding
 * @param {number} imageSize
 * @param {number} longest
 * @returns {Path2D} in pixels of the photo
 */
function quickPath(logits, embedding, imageSize, longest) {
  const shrink = Math.min(1, longest / Math.max(embedding.width, embedding.height));
  const [width, height] = [embedding.width, embedding.height].map((side) => Math.max(1, Math.round(side * shrink)));
  const mask = maskAt(logits, embedding, imageSize, width, height);
  return toPath(outlines(mask, width, height), embedding.width / width, embedding.height / height);
}

/**
 * Predicts the masks of drafts. Events: "masks" (a prediction or another choice), "exact" (the chosen mask at the
 * photo's pixels), "failure" (detail: an Error).
 */
export class Drafting extends EventTarget {
  constructor() {
    super();
    /** @type {Model | null} */
    this.model = null;
    /** @type {Embedding | null} */
    this.embedding = null;
    /** @type {Amount} */
    this.amount = 1;
    this.clean = { fillHoles: 0, dropIslands: 0 };
    /** @type {Prediction | null} */
    this.prediction = null;
    this.choice = 0;
    /** @type {Path2D | null} */
    this.path = null;
    /** @type {Promise<Mask> | null} */
    this.exact = null;
    /** @type {Promise<void>} */
    this.settled = Promise.resolve(); // the latest request
    this.hoverMs = 0; // time of a preview, smoothed
    /** @type {Draft | null} */
    this.draft = null;
    this.request = 0;
  }

  /** @param {Model | null} model @param {Embedding | null} embedding */
  use(model, embedding) {
    this.model = model;
    this.embedding = embedding;
    this.hoverMs = 0;
    this.#forget();
    this.draft = null;
  }

  #forget() {
    this.prediction = this.path = this.exact = null;
    this.request++;
  }

  /** @returns {boolean} whether previews are quick enough to follow the pointer */
  get previews() {
    return this.hoverMs < 250;
  }

  /**
   * Predict a draft's masks, unless only its choice changed.
   *
   * @param {Draft} draft
   * @returns {Promise<void>} the masks are there, or the draft was replaced
   */
  update(draft) {
    const before = this.draft;
    this.draft = draft;
    const same =
      before && before.points === draft.points && before.box === draft.box && before.maskInput === draft.maskInput;
    if (same && this.prediction) {
      if (before.choice !== draft.choice) this.#choose();
      return this.settled;
    }
    if (same && !isEmpty(draft)) return this.settled;
    if (isEmpty(draft) || !this.model || !this.embedding) {
      const had = this.prediction;
      this.#forget();
      if (had) this.dispatchEvent(new Event("masks"));
      return Promise.resolve();
    }
    this.settled = this.#predict(this.model, this.embedding, draft);
    return this.settled;
  }

  /** @param {Model} model @param {Embedding} embedding @param {Draft} draft */
  async #predict(model, embedding, { points, box, maskInput }) {
    const request = ++this.request;
    try {
      const prediction = await model.predict(embedding, { points, box }, { maskInput });
      if (request !== this.request) return;
      this.prediction = prediction;
      this.#choose();
    } catch (error) {
      if (request !== this.request) return;
      this.#forget();
      this.dispatchEvent(new CustomEvent("failure", { detail: error }));
    }
  }

  /** Take the mask that the draft asks for, or the best of those that are shown. */
  #choose() {
    const { prediction, model, embedding, draft } = this;
    if (!prediction || !model || !embedding || !draft) return;
    const candidates = shown(this.amount);
    const best = candidates.reduce((a, b) => (prediction.scores[b] > prediction.scores[a] ? b : a));
    this.choice = draft.choice !== null && candidates.includes(draft.choice) ? draft.choice : best;
    const logits = logitsOf(prediction, this.choice);
    if (!this.clean.fillHoles && !this.clean.dropIslands) {
      this.path = quickPath(logits, embedding, model.info.image_size, QUICK);
    }
    const request = ++this.request;
    const exact = model.mask(embedding, logits, this.clean);
    this.exact = exact;
    exact.then(
      (mask) => {
        if (request !== this.request) return;
        this.path = pathOf(mask, mask.height);
        this.dispatchEvent(new Event("exact"));
      },
      (error) => {
        if (request === this.request) this.dispatchEvent(new CustomEvent("failure", { detail: error }));
      },
    );
    this.dispatchEvent(new Event("masks"));
  }

  /** @param {Amount} amount */
  setAmount(amount) {
    this.amount = amount;
    this.#choose();
  }

  /** @param {{ fillHoles: number, dropIslands: number }} clean */
  setClean(clean) {
    this.clean = clean;
    this.#choose();
  }

  /**
   * The mask that a prompt would give, for a preview under the pointer.
   *
   * @param {Prompt} prompt
   * @returns {Promise<Path2D | null>} null if there is a newer request, or none possible
   */
  async preview(prompt) {
    const { model, embedding } = this;
    if (!model || !embedding || !this.previews) return null;
    const prediction = await model.hover(embedding, prompt).catch(() => null);
    if (!prediction || this.embedding !== embedding) return null;
    this.hoverMs = this.hoverMs ? 0.7 * this.hoverMs + 0.3 * prediction.ms : prediction.ms;
    const candidates = shown(this.amount);
    const best = candidates.reduce((a, b) => (prediction.scores[b] > prediction.scores[a] ? b : a));
    return quickPath(logitsOf(prediction, best), embedding, model.info.image_size, PREVIEW);
  }

  /**
   * A small picture of a mask, to choose from.
   *
   * @param {number} index
   * @param {number} width
   * @param {number} height
   * @returns {Uint8Array | null} (h w) 0 or 1
   */
  thumbnail(index, width, height) {
    const { prediction, embedding, model } = this;
    if (!prediction || !embedding || !model) return null;
    return maskAt(logitsOf(prediction, index), embedding, model.info.image_size, width, height);
  }
}
