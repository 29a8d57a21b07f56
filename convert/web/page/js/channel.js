/** @file Calls to the worker as promises. */

import { FileError } from "./download.js";

/**
 * @typedef {{ resolve: (value: any) => void, reject: (error: Error) => void, onProgress: (value: any) => void }} Call
 */

/** A worker and the calls that it hasn't answered. */
export class Channel {
  /** @param {string} base URL of the site */
  constructor(base) {
    this.next = 1;
    /** @type {Map<number, Call>} */
    this.calls = new Map();
    this.heard = performance.now(); // the last time that the worker said something
    this.worker = new Worker(new URL("js/worker.js", base), { type: "module" });
    this.worker.onmessage = ({ data }) => this.#receive(data);
    this.worker.onerror = (event) => {
      event.preventDefault();
      const reason = event.message ? `failed: ${event.message}` : "can't be loaded; copy the folder of the site again";
      this.close(new Error(`js/worker.js: ${reason}`));
    };
    /** @type {Error | null} */
    this.closed = null;
  }

  /**
   * @param {string} type
   * @param {object} [data]
   * @param {Transferable[]} [transfer]
   * @param {(value: any) => void} [onProgress]
   * @returns {Promise<any>}
   */
  call(type, data = {}, transfer = [], onProgress = () => {}) {
    return new Promise((resolve, reject) => {
      if (this.closed) {
        reject(this.closed);
        return;
      }
      const id = this.next++;
      this.calls.set(id, { resolve, reject, onProgress });
      this.worker.postMessage({ ...data, id, type }, transfer);
    });
  }

  /** End the worker; calls that it hasn't answered fail. @param {Error} [reason] */
  close(reason = new Error("the model has been closed")) {
    this.closed ??= reason;
    this.worker.terminate();
    for (const { reject } of this.calls.values()) reject(this.closed);
    this.calls.clear();
  }

  /** @param {{ id: number, result?: any, progress?: any, error?: { name: string, message: string } }} data */
  #receive({ id, result, progress, error }) {
    this.heard = performance.now();
    const call = this.calls.get(id);
    if (!call) return;
    if (progress) {
      call.onProgress(progress);
      return;
    }
    this.calls.delete(id);
    if (!error) call.resolve(result);
    else if (error.name === "FileError") call.reject(new FileError(error.message));
    else if (error.name === "AbortError") call.reject(new DOMException(error.message, "AbortError"));
    else call.reject(new Error(error.message));
  }
}
