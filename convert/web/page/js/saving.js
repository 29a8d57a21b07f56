/** @file Autosave: loads the last visit's work, saves every change, and says so when it can't. */

import { element, message } from "./dom.js";
import { askToPersist, Store, StoreError } from "./store.js";
import { say } from "./strings.js";

/** @typedef {import("./work.js").Work} Work */
/** @typedef {import("./work.js").PhotoEntry} PhotoEntry */

export class Saving {
  /** @param {Work} work */
  constructor(work) {
    this.work = work;
    /** @type {Store | null} */
    this.store = null;
    /** @type {Map<string, (store: Store) => Promise<void>>} */
    this.unsaved = new Map(); // what could not be written, by what it is
    this.broken = false; // there is no database
    this.pending = 0;
    this.order = Date.now();
    work.addEventListener("save", (event) => {
      if (!(event instanceof CustomEvent)) return;
      const photo = /** @type {PhotoEntry} */ (event.detail);
      void this.#run(`state ${photo.id}`, (store) => store.saveState(photo));
    });
    window.addEventListener("beforeunload", (event) => {
      if (this.pending || (this.failed && work.photos.length > 0)) event.preventDefault();
    });
  }

  /** @returns {boolean} whether something isn't saved */
  get failed() {
    return this.broken || this.unsaved.size > 0;
  }

  /** @returns {Promise<void>} after the last visit's photos are in `work` */
  async load() {
    try {
      this.store = await Store.open();
      this.work.photos.push(...(await this.store.loadPhotos()));
    } catch (error) {
      this.broken = true;
      this.#fail(error);
    }
    // Held as long as the page is open.
    void navigator.locks?.request("edgesam-page", { ifAvailable: true }, (lock) => {
      if (lock) return new Promise(() => {});
      message(say.otherTab, "error");
      return undefined;
    });
  }

  /** @param {PhotoEntry} photo a new one, or one whose blob has come */
  async addPhoto(photo) {
    const order = this.order++;
    await this.#run(`photo ${photo.id}`, (store) => store.savePhoto(photo, order));
    void askToPersist();
  }

  /** @param {PhotoEntry} photo */
  async removePhoto({ id }) {
    for (const what of ["photo", "state"]) this.unsaved.delete(`${what} ${id}`);
    await this.#run(`removal of ${id}`, (store) => store.remove(id));
    // There is space again.
    for (const [key, write] of [...this.unsaved]) await this.#run(key, write);
  }

  /** @param {string} key @param {unknown} value */
  async setting(key, value) {
    await this.#run(`setting ${key}`, (store) => store.saveSetting(key, value));
  }

  /** @param {string} key @returns {Promise<unknown>} */
  async loadSetting(key) {
    return this.store?.loadSetting(key).catch(() => undefined);
  }

  /** @param {string} key what is written @param {(store: Store) => Promise<void>} write */
  async #run(key, write) {
    if (!this.store) return;
    this.pending++;
    this.#show();
    try {
      await write(this.store);
      this.unsaved.delete(key);
    } catch (error) {
      this.unsaved.set(key, write);
      this.#fail(error);
    } finally {
      this.pending--;
      this.#show();
    }
  }

  /** @param {unknown} error */
  #fail(error) {
    console.warn(error);
    const full = error instanceof StoreError && error.full;
    message(full ? say.storeFull : say.storeFailed(error instanceof Error ? error.message : String(error)), "error");
    this.#show();
  }

  #show() {
    const { saved } = say;
    const text = this.failed
      ? saved.memory
      : this.pending
        ? saved.busy
        : this.work.photos.length
          ? saved.now
          : saved.none;
    element("saved").textContent = text;
    element("saved").classList.toggle("ready", text === saved.now);
  }
}
