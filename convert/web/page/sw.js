/**
 * @file The service worker: keeps the site's files for offline use, and adds the headers that threads and the page's
 * policy need where the host can't send them.
 *
 * It keeps exactly the files that site.js lists, each only if it has the checksum given there, so two versions of a
 * site are never mixed. On the first visit the page's own files are kept at once, and model and runtime when the page
 * loads them, so that they are loaded once; the message "keep" fetches what is still missing. A newer version is kept
 * as a whole before it is used; of the files, only those that changed are loaded. Files for WebGPU are only kept where
 * they are used.
 */

/** @typedef {import("./js/types.js").Site} Site */
/** @typedef {import("./js/types.js").SiteFile} SiteFile */

const worker = /** @type {ServiceWorkerGlobalScope & { SITE: Site }} */ (/** @type {unknown} */ (self));

importScripts("site.js"); // a site that was written again has another one, by which browsers find the new version

const PREFIX = `edgesam-site ${new URL(worker.registration.scope).pathname} `; // other sites may share the origin
const CACHE = PREFIX + worker.SITE.version;
const FILES = new Map(worker.SITE.files.map((file) => [file.path, file]));
const START = [...FILES.values()].filter(({ path }) => /^(js\/.*|[^/]*)$/.test(path));
const CHECKSUM = "X-Site-SHA256"; // of a kept file
const HEADERS = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Cross-Origin-Resource-Policy": "same-origin",
  ...(worker.SITE.policy && { "Content-Security-Policy": worker.SITE.policy }), // workers don't follow the page's own
};

worker.addEventListener("install", (event) => {
  event.waitUntil(install());
});

worker.addEventListener("activate", (event) => {
  event.waitUntil(takeOver());
});

worker.addEventListener("fetch", (event) => {
  const path = pathOf(event.request.url);
  if (event.request.method === "GET" && path !== null) event.respondWith(answer(event, path));
});

worker.addEventListener("message", (event) => {
  const { type } = event.data;
  const [port] = event.ports;
  if (type === "keep") event.waitUntil(keepAll(port));
  if (type === "use") event.waitUntil(worker.skipWaiting());
});

/** Keep the page's files, or all files if an earlier version works offline. */
async function install() {
  const update = (await earlier()).length > 0;
  const files = update ? [...FILES.values()] : START;
  for (const file of files) await keep(file, update && file.optional);
}

/** @returns {Promise<string[]>} caches of earlier versions */
async function earlier() {
  return (await caches.keys()).filter((name) => name.startsWith(PREFIX) && name !== CACHE);
}

/** Serve open pages from now on, and drop the caches of earlier versions. */
async function takeOver() {
  for (const name of await earlier()) await caches.delete(name);
  await worker.clients.claim();
}

/**
 * @param {string} url
 * @returns {string | null} the path below the site; null for other addresses
 */
function pathOf(url) {
  const { scope } = worker.registration;
  const plain = url.split(/[?#]/, 1)[0];
  if (!plain.startsWith(scope)) return null;
  return decodeURIComponent(plain.slice(scope.length)) || "index.html";
}

/**
 * @param {FetchEvent} event
 * @param {string} path
 * @returns {Promise<Response>}
 */
async function answer(event, path) {
  const file = FILES.get(path);
  const kept = file && (await (await caches.open(CACHE)).match(worker.registration.scope + path));
  if (kept) return withHeaders(kept);
  const response = await fetch(event.request, { cache: "no-cache" });
  if (file && response.ok) {
    const copy = response.clone();
    event.waitUntil(store(file, copy).catch(() => false)); // the page reports what is wrong with a file that it needs
  }
  return withHeaders(response);
}

/** @param {Response} response @returns {Response} */
function withHeaders(response) {
  if (response.type === "opaque" || response.type === "error" || response.status === 0) return response;
  const headers = new Headers(response.headers);
  for (const [name, value] of Object.entries(HEADERS)) headers.set(name, value);
  const { status, statusText } = response;
  return new Response([101, 204, 205, 304].includes(status) ? null : response.body, { status, statusText, headers });
}

/**
 * Keep a file that isn't kept yet: from the cache of an earlier version, or from the server.
 *
 * @param {SiteFile} file
 * @param {boolean} [only] from an earlier version
 * @throws {Error} it is missing, or has another checksum
 */
async function keep(file, only = false) {
  const url = worker.registration.scope + file.path;
  const cache = await caches.open(CACHE);
  if (await cache.match(url)) return;
  for (const name of await earlier()) {
    const found = await (await caches.open(name)).match(url);
    if (found?.headers.get(CHECKSUM) === file.sha256) {
      await cache.put(url, found);
      return;
    }
  }
  if (only) return;
  const response = await fetch(url, { cache: "no-cache" });
  if (!response.ok || !(await store(file, response))) throw new Error(`${file.path}: missing, or of another version`);
}

/**
 * Keep a response if it is the file.
 *
 * @param {SiteFile} file
 * @param {Response} response
 * @returns {Promise<boolean>}
 */
async function store({ path, sha256 }, response) {
  const content = await response.arrayBuffer();
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", content));
  if (Array.from(hash, (byte) => byte.toString(16).padStart(2, "0")).join("") !== sha256) return false;
  const headers = {
    "Content-Type": response.headers.get("Content-Type") ?? "",
    "Content-Length": String(content.byteLength),
    [CHECKSUM]: sha256,
  };
  await (await caches.open(CACHE)).put(worker.registration.scope + path, new Response(content, { headers }));
  return true;
}

/**
 * Keep all files but the optional ones, one after the other.
 *
 * @param {MessagePort} port receives { done, total } in bytes, finally { kept }
 */
async function keepAll(port) {
  const files = [...FILES.values()].filter(({ optional }) => !optional);
  const total = files.reduce((sum, { bytes }) => sum + bytes, 0);
  let done = 0;
  try {
    for (const file of files) {
      await keep(file);
      done += file.bytes;
      port.postMessage({ done, total });
    }
    port.postMessage({ kept: true });
  } catch (error) {
    port.postMessage({ kept: false, reason: error instanceof Error ? error.message : String(error) });
  }
}
