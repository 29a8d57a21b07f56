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
    this.failed = false; // something isn't saved
    this.pending = 0;
    this.order = Date.now();
    work.addEventListener("save", (event) => {
      if (event instanceof CustomEvent) void this.#run((store) => store.saveState(event.detail));
    });
    window.addEventListener("beforeunload", (event) => {
      if (this.pending || (this.failed && work.photos.length)) event.preventDefault();
    });
  }

  /** @returns {Promise<void>} after the last visit's photos are in `work` */
  async load() {
    try {
      this.store = await Store.open();
      this.work.photos.push(...(await this.store.loadPhotos()));
    } catch (error) {
      this.#fail(error);
    }
    // Held as long as the page is open.
    void navigator.locks?.request("edgesam-page", { ifAvailable: true }, (lock) => {
      if (lock) return new Promise(() => {});
      message(say.otherTab, "error");
      return undefined;
    });
  }

  /** @param {PhotoEntry} photo */
  async addPhoto(photo) {
    await this.#run((store) => store.savePhoto(photo, this.order++));
    void askToPersist();
  }

  /** @param {PhotoEntry} photo whose blob has come */
  async replacePhoto(photo) {
    await this.#run((store) => store.savePhoto(photo, this.order++));
  }

  /** @param {PhotoEntry} photo */
  async removePhoto(photo) {
    await this.#run((store) => store.remove(photo.id));
  }

  /** @param {string} key @param {unknown} value */
  async setting(key, value) {
    await this.#run((store) => store.saveSetting(key, value));
  }

  /** @param {string} key @returns {Promise<unknown>} */
  async loadSetting(key) {
    return this.store?.loadSetting(key).catch(() => undefined);
  }

  /** @param {(store: Store) => Promise<void>} write */
  async #run(write) {
    if (!this.store) return;
    this.pending++;
    this.#show();
    try {
      await write(this.store);
      this.failed = false;
    } catch (error) {
      this.#fail(error);
    } finally {
      this.pending--;
      this.#show();
    }
  }

  /** @param {unknown} error */
  #fail(error) {
    console.warn(error);
    this.failed = true;
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
