/**
 * @file Registers the service worker, which makes the page work offline and supplies the headers that threads need.
 *
 * Call `prepareOffline` before `openModel`: on the first visit to a host that doesn't send those headers it reloads the
 * page once (its promise then never settles), and what is loaded afterwards is kept for offline use. Call `keepOffline`
 * when the model is ready.
 */

const RELOADED = "edgesam-reloaded"; // in the session's storage: the page was reloaded for the headers
const PATIENCE = 8000; // ms until the page goes on without the service worker

/**
 * @typedef {object} OfflineState
 * @property {boolean} supported whether the browser has service workers here (https or localhost)
 * @property {boolean} controlled whether the service worker serves this page
 * @property {boolean} isolated whether threads are available
 * @property {string} reason why the service worker doesn't serve the page; empty if it does
 */

/**
 * Register the service worker and wait until it serves the page, a few seconds at most.
 *
 * @returns {Promise<OfflineState>} never rejects
 */
export async function prepareOffline() {
  const isolated = self.crossOriginIsolated === true;
  /** @param {string} reason @returns {OfflineState} */
  const without = (reason) => ({ supported: reason !== UNSUPPORTED, controlled: false, isolated, reason });
  const workers = navigator.serviceWorker; // undefined on http, other than on this machine
  if (!workers) return without(UNSUPPORTED);
  const changed = new Promise((resolve) => {
    workers.addEventListener("controllerchange", () => resolve(true), { once: true });
    setTimeout(() => resolve(false), PATIENCE);
  });
  try {
    const registration = await workers.register(new URL("sw.js", document.baseURI), { updateViaCache: "none" });
    watch(registration);
    if (!workers.controller && registration.active?.state === "activated") {
      return without("the page was loaded without it; reload the page"); // by a forced reload
    }
    if (workers.controller && registration.waiting) {
      registration.waiting.postMessage({ type: "use" }); // a newer version that an earlier visit has kept
      if (await changed) {
        location.reload();
        return new Promise(() => {});
      }
    }
  } catch (error) {
    return without(error instanceof Error ? error.message : String(error));
  }
  if (!workers.controller) await changed;
  if (!workers.controller) return without("it didn't start in time");
  if (!isolated && reloadOnce()) return new Promise(() => {});
  return { supported: true, controlled: true, isolated, reason: "" };
}

const UNSUPPORTED = "this browser has no service workers here";

/** Reload the page, through the service worker. @returns {boolean} false if that was done before */
function reloadOnce() {
  try {
    if (sessionStorage.getItem(RELOADED)) return false;
    sessionStorage.setItem(RELOADED, "yes");
  } catch {
    return false; // without storage it could reload forever
  }
  location.reload();
  return true;
}

/**
 * Keep all files of the site that aren't kept yet. Call it when the model is ready.
 *
 * @param {(progress: { done: number, total: number }) => void} [onProgress] bytes
 * @returns {Promise<boolean>} whether the page now works offline
 */
export function keepOffline(onProgress = () => {}) {
  const controller = navigator.serviceWorker?.controller;
  if (!controller) return Promise.resolve(false);
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = ({ data }) => {
      if (!("kept" in data)) {
        onProgress(data);
        return;
      }
      port1.close();
      if (!data.kept) console.warn(`not kept for offline use: ${data.reason}`);
      resolve(data.kept);
    };
    controller.postMessage({ type: "keep" }, [port2]);
  });
}

/** @type {Set<() => void>} */
const listeners = new Set();

/**
 * Call a function when a newer version of the site has been kept; it is used from the next load of the page on.
 *
 * @param {() => void} callback
 */
export function onUpdate(callback) {
  listeners.add(callback);
}

/** @param {ServiceWorkerRegistration} registration */
function watch(registration) {
  registration.addEventListener("updatefound", () => {
    const found = registration.installing;
    found?.addEventListener("statechange", () => {
      if (found.state !== "installed" || !navigator.serviceWorker.controller) return; // the first one is no update
      for (const callback of listeners) callback();
    });
  });
}
