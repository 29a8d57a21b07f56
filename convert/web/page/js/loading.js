/** @file Loads the model and shows how far it is; tells which backend runs, and whether the page works offline. */

import { element, make, message, progress } from "./dom.js";
import { keepOffline, onUpdate, prepareOffline } from "./offline.js";
import { openModel } from "./session.js";
import { megabytes, say } from "./strings.js";

/** @typedef {import("./types.js").Model} Model */
/** @typedef {import("./types.js").LoadProgress} LoadProgress */

/**
 * Show that something goes on above the photo; empty: nothing does.
 *
 * @param {string} text
 * @param {number} [value] how far; without it the bar moves to and fro
 * @param {number} [max]
 */
export function busy(text, value, max) {
  const bar = progress("busy-bar");
  element("busy").hidden = !text;
  element("busy-text").textContent = text;
  if (value !== undefined && max) {
    bar.max = max;
    bar.value = Math.min(value, max);
  } else bar.removeAttribute("value");
}

/** @param {LoadProgress} loading */
function showLoading({ what, loaded, total }) {
  /** @type {Record<string, string>} */
  const parts = say.parts;
  busy(what === "check" ? say.checking(loaded, total) : say.loading(parts[what] ?? what, loaded, total), loaded, total);
}

/**
 * @returns {Promise<Model>}
 * @throws {Error} with a message for the user
 */
export async function loadModel() {
  element("backend").textContent = say.modelLoading;
  busy(say.starting);
  const offline = await prepareOffline();
  // For tests and reports: ?backend=wasm or ?backend=webgpu, ?threads=1, ?arithmetic=float32 or ?arithmetic=float16.
  const wanted = new URLSearchParams(location.search);
  const [backend, arithmetic] = [wanted.get("backend"), wanted.get("arithmetic")];
  const model = await openModel(document.baseURI, {
    onProgress: showLoading,
    backend: backend === "wasm" || backend === "webgpu" ? backend : "auto",
    threads: Number(wanted.get("threads")) || 0,
    arithmetic: arithmetic === "float32" || arithmetic === "float16" ? arithmetic : "auto",
  });
  showModel(model);
  void showOffline(offline);
  return model;
}

/** @param {Model} model */
function showModel({ info, backend }) {
  const { name, source, licence, precision, parts } = info;
  const bytes = Object.values(parts).reduce((sum, part) => sum + part.bytes, 0);
  element("backend").textContent = say.backendLine(backend);
  element("backend").dataset.backend = backend.name;
  element("runs").textContent = say.runs(backend);
  const facts = { name, source, licence, size: megabytes(bytes), precision };
  element("model-facts").replaceChildren(
    ...Object.entries(facts).flatMap(([key, value]) => [
      make("dt", { textContent: say.facts[/** @type {keyof typeof say.facts} */ (key)] }),
      make("dd", { textContent: String(value) }),
    ]),
  );
  const notes = backend.rejected.map((rejected) => say.rejected(rejected.name, rejected.reason));
  if (backend.name === "wasm" && !backend.isolated) notes.push(say.oneThread);
  element("rejected").replaceChildren(...notes.map((textContent) => make("li", { textContent })));
}

/** @param {import("./offline.js").OfflineState} state */
async function showOffline({ supported, controlled, reason }) {
  const line = element("offline");
  const tell = (/** @type {string} */ text, /** @type {boolean} */ ready) => {
    line.textContent = text;
    line.classList.toggle("ready", ready);
  };
  onUpdate(() => message(say.offline.update));
  if (!supported || !controlled) {
    tell(say.offline.not(reason), false);
    return;
  }
  tell(say.offline.checking, false);
  try {
    const ready = await keepOffline(({ done, total }) => tell(say.offline.keeping(done, total), false));
    tell(ready ? say.offline.ready : say.offline.not(""), ready);
  } catch (error) {
    tell(say.offline.not(error instanceof Error ? error.message : ""), false);
  }
}
