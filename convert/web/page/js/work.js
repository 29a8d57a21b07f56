/** @file What the user has made: photos, the objects on them, and the prompt in progress. */

import { History } from "./history.js";

/** @typedef {import("./types.js").Prompt} Prompt */
/** @typedef {import("./types.js").Mask} Mask */

/**
 * The prompt in progress. States are never changed, only replaced.
 *
 * @typedef {object} Draft
 * @property {[number, number, number][]} points x, y, label
 * @property {[number, number, number, number] | null} box
 * @property {Float32Array | null} maskInput logits (s s) of the mask that is being refined
 * @property {number | null} choice which of the four masks the user chose; null: the best one
 * @property {string | null} editing id of the object that this prompt replaces
 */

/**
 * A finished mask with its label.
 *
 * @typedef {object} MaskObject
 * @property {string} id
 * @property {string} label
 * @property {Uint32Array} counts run lengths, column by column
 * @property {[number, number, number, number]} box x, y, width, height
 * @property {number} area pixels
 * @property {number} colour index into the palette
 * @property {boolean} hidden on the screen; exports contain it all the same
 * @property {number | null} score
 * @property {Draft | null} prompt that made it
 */

/** @typedef {{ objects: readonly MaskObject[], draft: Draft }} State */

/**
 * @typedef {"file" | "paste" | "camera" | "example"} Origin
 *
 * @typedef {object} PhotoEntry
 * @property {string} id
 * @property {string} name of the file, different for each photo
 * @property {Origin} origin
 * @property {Blob | null} blob null: imported annotations whose photo hasn't been opened yet
 * @property {number} width upright, in pixels; 0 until the photo was opened
 * @property {number} height
 * @property {string} thumbnail data URL
 * @property {History<State>} history
 */

/** @type {Draft} */
export const EMPTY = Object.freeze({ points: [], box: null, maskInput: null, choice: null, editing: null });

/** @param {Draft} draft @returns {boolean} */
export function isEmpty({ points, box }) {
  return !points.length && !box;
}

/** @returns {string} */
export function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(9)), (byte) => byte.toString(36).padStart(2, "0")).join("");
}

/** @type {State} */
const NOTHING = Object.freeze({ objects: Object.freeze([]), draft: EMPTY });

/**
 * Photos in the order of their opening. Events: "photos" (the list or the current photo), "state" (the current photo's
 * objects or draft), "save" (detail: a photo whose state must be saved).
 */
export class Work extends EventTarget {
  constructor() {
    super();
    /** @type {PhotoEntry[]} */
    this.photos = [];
    /** @type {PhotoEntry | null} */
    this.current = null;
    /** @type {string | null} */
    this.selected = null; // id of an object
    this.lastLabel = "";
  }

  /** @returns {State} of the current photo */
  get state() {
    return this.current?.history.present ?? NOTHING;
  }

  /** @returns {MaskObject | null} */
  get selectedObject() {
    return this.state.objects.find(({ id }) => id === this.selected) ?? null;
  }

  /** @returns {string[]} all labels in use, sorted */
  get labels() {
    const all = this.photos.flatMap(({ history }) => history.present.objects.map(({ label }) => label));
    return [...new Set(all)].filter(Boolean).sort((a, b) => a.localeCompare(b));
  }

  /**
   * @param {Omit<PhotoEntry, "history"> & { state?: State }} photo
   * @returns {PhotoEntry}
   */
  add({ state = NOTHING, ...photo }) {
    const entry = { ...photo, history: new History(state) };
    this.photos.push(entry);
    this.#tell("photos");
    return entry;
  }

  /** @param {PhotoEntry} photo */
  remove(photo) {
    this.photos = this.photos.filter((other) => other !== photo);
    if (this.current === photo) this.select(null);
    else this.#tell("photos");
  }

  /** @param {PhotoEntry | null} photo */
  select(photo) {
    this.current = photo;
    this.selected = null;
    this.#tell("photos");
    this.#tell("state");
  }

  /** @param {string | null} id of an object */
  selectObject(id) {
    this.selected = id;
    this.#tell("state");
  }

  /**
   * Change the current photo's state.
   *
   * @param {Partial<State>} change
   * @param {{ undoable?: boolean, photo?: PhotoEntry | null }} [options]
   */
  commit(change, { undoable = true, photo = this.current } = {}) {
    if (!photo) return;
    const state = { ...photo.history.present, ...change };
    if (undoable) photo.history.push(state);
    else photo.history.replace(state);
    this.#changed(photo);
  }

  /** @param {Partial<Draft>} change @param {boolean} [undoable] */
  commitDraft(change, undoable = true) {
    this.commit({ draft: { ...this.state.draft, ...change } }, { undoable });
  }

  /** @returns {boolean} whether there was something to undo */
  undo() {
    const done = this.current?.history.undo() ?? false;
    if (done && this.current) this.#changed(this.current);
    return done;
  }

  /** @returns {boolean} whether there was something to redo */
  redo() {
    const done = this.current?.history.redo() ?? false;
    if (done && this.current) this.#changed(this.current);
    return done;
  }

  /**
   * @param {Pick<Mask, "counts" | "box" | "area">} mask
   * @param {string} label
   * @param {{ score?: number | null, prompt?: Draft | null, colour?: number }} [more]
   * @returns {MaskObject}
   */
  makeObject({ counts, box, area }, label, { score = null, prompt = null, colour = this.nextColour() } = {}) {
    return { id: newId(), label, counts, box, area, colour, hidden: false, score, prompt };
  }

  /** @param {PhotoEntry | null} [photo] @returns {number} */
  nextColour(photo = this.current) {
    return photo ? 1 + Math.max(-1, ...photo.history.present.objects.map(({ colour }) => colour)) : 0;
  }

  /** @param {string} id @param {Partial<MaskObject>} change @param {boolean} [undoable] */
  changeObject(id, change, undoable = true) {
    const objects = this.state.objects.map((object) => (object.id === id ? { ...object, ...change } : object));
    this.commit({ objects }, { undoable });
  }

  /** @param {string} id */
  deleteObject(id) {
    const { objects, draft } = this.state;
    if (this.selected === id) this.selected = null;
    const kept = draft.editing === id ? EMPTY : draft;
    this.commit({ objects: objects.filter((object) => object.id !== id), draft: kept });
  }

  /**
   * @param {string} name of a file
   * @returns {string} the name, or a similar one that no photo has, and without folders; stems differ, too
   */
  freeName(name) {
    const bare = name.replace(/^.*[\\/]/, "").replace(/[\p{Cc}<>:"|?*]/gu, "_") || "photo";
    const dot = bare.lastIndexOf(".");
    const [stem, suffix] = dot > 0 ? [bare.slice(0, dot), bare.slice(dot)] : [bare, ""];
    const taken = new Set(this.photos.map((photo) => stemOf(photo.name)));
    for (let number = 1; ; number++) {
      const free = number === 1 ? stem : `${stem}-${number}`;
      if (!taken.has(free.toLowerCase())) return free + suffix;
    }
  }

  /** @param {PhotoEntry} photo */
  #changed(photo) {
    this.dispatchEvent(new CustomEvent("save", { detail: photo }));
    if (photo === this.current) this.#tell("state");
    else this.#tell("photos");
  }

  /** @param {string} event */
  #tell(event) {
    this.dispatchEvent(new Event(event));
  }
}

/** @param {string} name @returns {string} the file's name without its suffix, in lower case */
export function stemOf(name) {
  return name.replace(/\.[^.]*$/, "").toLowerCase();
}
