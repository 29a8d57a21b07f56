/** @file Open photos and their embeddings. Only the latest few stay in memory. */

import { openPhoto } from "./photo.js";

/** @typedef {import("./types.js").Photo} Photo */
/** @typedef {import("./types.js").Model} Model */
/** @typedef {import("./types.js").Embedding} Embedding */
/** @typedef {Pick<import("./work.js").PhotoEntry, "id" | "name" | "blob">} Source */

/** @typedef {{ photo: Photo, embedding: Promise<Embedding> | null, model: Model | null }} Opened */

const MOST = 4; // photos in memory
const MOST_PIXELS = 60e6;
const THUMBNAIL = [128, 96];

export class Photos {
  constructor() {
    /** @type {Map<string, Promise<Opened>>} */
    this.opened = new Map(); // by id, the latest used last
  }

  /**
   * @param {Source} entry with a blob
   * @returns {Promise<Opened>}
   */
  open(entry) {
    const known = this.opened.get(entry.id);
    if (known) this.opened.delete(entry.id);
    const opening = known ?? this.#read(entry);
    this.opened.set(entry.id, opening);
    if (!known) opening.catch(() => this.opened.delete(entry.id));
    return opening;
  }

  /** @param {Source} entry @returns {Promise<Opened>} */
  async #read({ blob, name }) {
    if (!blob) throw new TypeError(`${name}: no photo`);
    return { photo: await openPhoto(blob, name), embedding: null, model: null };
  }

  /**
   * @param {Source} entry with a blob
   * @param {Model} model
   * @returns {Promise<Embedding>}
   */
  async encode(entry, model) {
    const opened = await this.open(entry);
    if (!opened.embedding || opened.model !== model) {
      opened.model = model;
      opened.embedding = model.encode(opened.photo);
      opened.embedding.catch(() => (opened.embedding = null));
    }
    return opened.embedding;
  }

  /**
   * Close the photos that were used least lately, beyond what may stay in memory.
   *
   * @param {string} current id of the photo that stays
   */
  async tidy(current) {
    let [count, pixels] = [0, 0];
    for (const [id, opening] of [...this.opened].reverse()) {
      const { photo } = await opening.catch(() => ({ photo: null }));
      if (!photo) continue;
      count++;
      pixels += photo.width * photo.height;
      if (id !== current && (count > MOST || pixels > MOST_PIXELS)) await this.close(id);
    }
  }

  /** @param {string} id */
  async close(id) {
    const opening = this.opened.get(id);
    this.opened.delete(id);
    const opened = await opening?.catch(() => null);
    if (!opened) return;
    const embedding = await opened.embedding?.catch(() => null);
    if (embedding) opened.model?.release(embedding);
    opened.photo.close();
  }
}

/** @param {Photo} photo @returns {string} data URL of a small picture, cut to its shape */
export function thumbnailOf({ bitmap, width, height }) {
  const canvas = Object.assign(document.createElement("canvas"), { width: THUMBNAIL[0], height: THUMBNAIL[1] });
  const context = canvas.getContext("2d");
  if (!context) return "";
  const scale = Math.max(THUMBNAIL[0] / width, THUMBNAIL[1] / height);
  context.imageSmoothingQuality = "high";
  const [w, h] = [width * scale, height * scale];
  context.drawImage(bitmap, (THUMBNAIL[0] - w) / 2, (THUMBNAIL[1] - h) / 2, w, h);
  return canvas.toDataURL("image/jpeg", 0.8);
}
