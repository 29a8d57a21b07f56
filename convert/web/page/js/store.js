/** @file Keeps photos and objects in the browser's own database (IndexedDB), so that a reload loses nothing. */

import { History } from "./history.js";
import { EMPTY } from "./work.js";

/** @typedef {import("./work.js").PhotoEntry} PhotoEntry */
/** @typedef {import("./work.js").State} State */

const NAME = "edgesam-page";
const VERSION = 1;

/** The work could not be saved; the message is for the user. */
export class StoreError extends Error {
  /** @param {string} message @param {boolean} full */
  constructor(message, full) {
    super(message);
    this.name = "StoreError";
    this.full = full; // the browser's storage is full
  }
}

/**
 * @template T
 * @param {IDBRequest<T>} request
 * @returns {Promise<T>}
 */
function result(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/** Photos (blobs, written once), the state of each photo, and settings. */
export class Store {
  /** @param {IDBDatabase} database */
  constructor(database) {
    this.database = database;
    /** @type {Map<string, { wanted: PhotoEntry | null, running: Promise<void> }>} */
    this.saving = new Map();
  }

  /** @returns {Promise<Store>} */
  static async open() {
    const request = indexedDB.open(NAME, VERSION);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("photos", { keyPath: "id" });
      request.result.createObjectStore("states", { keyPath: "id" });
      request.result.createObjectStore("settings");
    };
    return new Store(await result(request));
  }

  /**
   * Write in one transaction, which is complete when the promise is fulfilled.
   *
   * @param {string[]} names
   * @param {(stores: IDBObjectStore[]) => void} change
   * @returns {Promise<void>}
   */
  #write(names, change) {
    return new Promise((resolve, reject) => {
      /** @param {DOMException | Error | null} error */
      const fail = (error) => {
        const full = error?.name === "QuotaExceededError";
        reject(new StoreError(error?.message || error?.name || "unknown error", full));
      };
      try {
        const transaction = this.database.transaction(names, "readwrite");
        transaction.oncomplete = () => resolve();
        transaction.onabort = () => fail(transaction.error);
        change(names.map((name) => transaction.objectStore(name)));
      } catch (error) {
        fail(error instanceof Error ? error : null);
      }
    });
  }

  /** @param {PhotoEntry} photo @param {number} order @returns {Promise<void>} */
  savePhoto({ id, name, origin, blob, width, height, thumbnail, history }, order) {
    return this.#write(["photos", "states"], ([photos, states]) => {
      photos.put({ id, name, origin, blob, width, height, thumbnail, order });
      states.put({ id, ...history.present });
    });
  }

  /**
   * Save the latest state of a photo. States that come while one is being written are written once.
   *
   * @param {PhotoEntry} photo
   * @returns {Promise<void>}
   */
  saveState(photo) {
    const waiting = this.saving.get(photo.id);
    if (waiting) {
      waiting.wanted = photo;
      return waiting.running;
    }
    const entry = { wanted: /** @type {PhotoEntry | null} */ (photo), running: Promise.resolve() };
    entry.running = (async () => {
      try {
        while (entry.wanted) {
          const { id, history } = entry.wanted;
          entry.wanted = null;
          await this.#write(["states"], ([states]) => states.put({ id, ...history.present }));
        }
      } finally {
        this.saving.delete(photo.id);
      }
    })();
    this.saving.set(photo.id, entry);
    return entry.running;
  }

  /** @returns {boolean} whether something is being written */
  get busy() {
    return this.saving.size > 0;
  }

  /** @param {string} id of a photo @returns {Promise<void>} */
  async remove(id) {
    await this.saving.get(id)?.running.catch(() => {});
    return this.#write(["photos", "states"], (stores) => stores.forEach((store) => store.delete(id)));
  }

  /** @returns {Promise<PhotoEntry[]>} in the order of their opening */
  async loadPhotos() {
    const transaction = this.database.transaction(["photos", "states"]);
    const [photos, states] = await Promise.all(
      ["photos", "states"].map((name) => result(transaction.objectStore(name).getAll())),
    );
    const byId = new Map(states.map((state) => [state.id, state]));
    return photos
      .sort((a, b) => a.order - b.order)
      .map(({ order: _order, ...photo }) => {
        const { objects = [], draft = EMPTY } = byId.get(photo.id) ?? {};
        return { ...photo, history: new History(/** @type {State} */ ({ objects, draft })) };
      });
  }

  /** @param {string} key @param {unknown} value @returns {Promise<void>} */
  saveSetting(key, value) {
    return this.#write(["settings"], ([settings]) => settings.put(value, key));
  }

  /** @param {string} key @returns {Promise<unknown>} undefined if it was never saved */
  loadSetting(key) {
    return result(this.database.transaction("settings").objectStore("settings").get(key));
  }

  /** Forget everything. @returns {Promise<void>} */
  clear() {
    return this.#write(["photos", "states"], (stores) => stores.forEach((store) => store.clear()));
  }
}

/** @returns {Promise<boolean>} whether the browser promises not to delete the work when it needs space */
export async function askToPersist() {
  try {
    return (await navigator.storage?.persist?.()) ?? false;
  } catch {
    return false;
  }
}
