/**
 * @file Registers the service worker, which makes the page work offline and supplies the headers that threads need.
 *
 * Call `prepareOffline` before `openModel`: on the first visit to a host that doesn't send those headers it reloads the
 * page once (the promise then never settles), and files that are loaded afterwards are kept for offline use.
 */

/**
 * @typedef {object} OfflineState
 * @property {boolean} supported whether the browser has service workers here (https or localhost)
 * @property {boolean} controlled whether the service worker serves this page
 * @property {boolean} isolated whether threads are available
 * @property {string} reason why it isn't supported or failed; empty otherwise
 */

/**
 * Register the service worker and wait until it serves the page, a few seconds at most.
 *
 * @returns {Promise<OfflineState>} never rejects
 */
export async function prepareOffline() {
  return { supported: false, controlled: false, isolated: self.crossOriginIsolated === true, reason: "not yet" };
}

/**
 * Keep all files of the site that aren't kept yet. Call it when the model is ready.
 *
 * @param {(progress: { done: number, total: number }) => void} [onProgress] bytes
 * @returns {Promise<boolean>} whether the page now works offline
 */
export async function keepOffline(onProgress = () => {}) {
  onProgress({ done: 0, total: 0 });
  return false;
}

/**
 * Call a function when a newer version of the site has been kept and will be used from the next load on.
 *
 * @param {() => void} callback
 */
export function onUpdate(callback) {
  void callback;
}
