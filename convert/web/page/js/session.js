/** @file The page's side of the model: starts the worker, loads files with progress, chooses the backend. */

/** @typedef {import("./types.js").Model} Model */
/** @typedef {import("./types.js").LoadProgress} LoadProgress */

/** An error with a message for the user: a missing or damaged file, or no backend that works. */
export class ModelError extends Error {
  /** @param {string} message */
  constructor(message) {
    super(message);
    this.name = "ModelError";
  }
}

/**
 * Load the site's model, and check backends until one computes the masks of the site's vectors.
 *
 * @param {string} baseUrl of the site, such as document.baseURI
 * @param {object} [options]
 * @param {(progress: LoadProgress) => void} [options.onProgress]
 * @param {"auto" | "wasm" | "webgpu"} [options.backend]
 * @param {number} [options.threads] of WebAssembly; 0: as many as suit the machine
 * @returns {Promise<Model>}
 * @throws {ModelError}
 */
export async function openModel(baseUrl, { onProgress = () => {}, backend = "auto", threads = 0 } = {}) {
  onProgress({ what: "runtime", loaded: 0, total: 0 });
  throw new ModelError(`not yet ${baseUrl} ${backend} ${threads}`);
}
