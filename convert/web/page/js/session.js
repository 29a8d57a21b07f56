/** @file The page's side of the model: starts the worker, loads files with progress, chooses the backend. */

import { candidates, title } from "./backends.js";
import { Channel } from "./channel.js";
import { compare, fault } from "./check.js";
import { downloadJson, download, FileError } from "./download.js";
import { bandRows, openPhoto, PhotoError } from "./photo.js";
import { checkPrompt, PromptError } from "./prompts.js";
import { predictions } from "./queue.js";

/** @typedef {import("./types.js").Model} Model */
/** @typedef {import("./types.js").ModelInfo} ModelInfo */
/** @typedef {import("./types.js").Photo} Photo */
/** @typedef {import("./types.js").Check} Check */
/** @typedef {import("./types.js").LoadProgress} LoadProgress */
/** @typedef {import("./types.js").Embedding} Embedding */
/** @typedef {import("./check.js").CheckVectors} CheckVectors */
/** @typedef {import("./backends.js").Candidate} Candidate */

const SILENCE = 120_000; // ms without any message of the worker, after which a backend counts as hung

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
 * @param {import("./backends.js").Arithmetic} [options.arithmetic] see `candidates`
 * @returns {Promise<Model>}
 * @throws {ModelError}
 */
export async function openModel(
  baseUrl,
  { onProgress = () => {}, backend = "auto", threads = 0, arithmetic = "auto" } = {},
) {
  const base = new URL(".", baseUrl).href;
  try {
    const files = [downloadJson(base, "model/model.json"), downloadJson(base, "vectors/check.json")];
    const [model, vectors] = /** @type {[ModelInfo, CheckVectors]} */ (await Promise.all(files));
    const content = await download(base, `vectors/${vectors.photo}`);
    const photo = await openPhoto(new Blob([content]), `vectors/${vectors.photo}`);
    try {
      if (arithmetic === "float16" && !model.half) throw new ModelError("this site has no files in float16");
      const { chosen, rejected } = await candidates(backend, threads, model.half ? arithmetic : "float32");
      for (const candidate of chosen) {
        const info = candidate.half ? { ...model, ...model.half } : model;
        const channel = new Channel(base);
        try {
          const check = await watched(channel, start(channel, candidate, base, info, photo, vectors, onProgress));
          const reason = fault(check, info.tolerance);
          if (!reason) return connected(channel, info, candidate, check, rejected);
          rejected.push({ name: title(candidate), reason });
        } catch (error) {
          if (error instanceof FileError) throw error;
          rejected.push({ name: title(candidate), reason: error instanceof Error ? error.message : String(error) });
        }
        channel.close();
      }
      const reasons = rejected.map(({ name, reason }) => `${name}: ${reason}`).join("; ");
      throw new ModelError(`this browser can't run the model. ${reasons}`);
    } finally {
      photo.close();
    }
  } catch (error) {
    if (error instanceof FileError || error instanceof PhotoError) throw new ModelError(error.message);
    throw error;
  }
}

/**
 * End the worker if it stays silent.
 *
 * @template T
 * @param {Channel} channel
 * @param {Promise<T>} work
 * @returns {Promise<T>}
 */
async function watched(channel, work) {
  const timer = setInterval(() => {
    if (performance.now() - channel.heard > SILENCE) channel.close(new Error(`no answer in ${SILENCE / 1000} s`));
  }, 1000);
  try {
    return await work;
  } finally {
    clearInterval(timer);
  }
}

/**
 * Load the model with a backend, and compare it with the vectors.
 *
 * @param {Channel} channel
 * @param {Candidate} candidate
 * @param {string} base
 * @param {ModelInfo} info
 * @param {Photo} photo
 * @param {CheckVectors} vectors
 * @param {(progress: LoadProgress) => void} onProgress
 * @returns {Promise<Check>}
 */
async function start(channel, { name, threads }, base, info, photo, vectors, onProgress) {
  await channel.call("load", { base, info, backend: name, threads }, [], onProgress);
  const began = performance.now();
  const total = vectors.prompts.length;
  onProgress({ what: "check", loaded: 0, total });
  await sendFrame(channel, 0, photo, [0, 0, photo.width, photo.height]);
  await channel.call("encode", { frame: 0 });
  let [worstOverlap, logitsError, loaded] = [1, 0, 0];
  for (const expected of vectors.prompts) {
    const prompt = { points: expected.points, box: expected.box };
    const { logits } = await channel.call("predict", { photo: 0, prompt, maskInput: null });
    const { overlap, error } = compare(logits, expected, info.mask_size, vectors.step);
    worstOverlap = Math.min(worstOverlap, overlap);
    logitsError = error > logitsError || Number.isNaN(error) ? error : logitsError;
    onProgress({ what: "check", loaded: ++loaded, total });
  }
  await channel.call("release", { photo: 0 });
  const check = { passed: true, worstOverlap, logitsError, prompts: total, ms: performance.now() - began };
  check.passed = !fault(check, info.tolerance);
  return check;
}

/**
 * Send a window of a photo to the worker, band by band.
 *
 * @param {Channel} channel
 * @param {number} frame
 * @param {Photo} photo
 * @param {[number, number, number, number]} window x0, y0, x1, y1
 */
async function sendFrame(channel, frame, photo, [x0, y0, x1, y1]) {
  await channel.call("frame", { frame, width: x1 - x0, height: y1 - y0 });
  const step = bandRows(photo.width);
  for (let y = y0; y < y1; y += step) {
    const rows = photo.rows(y, Math.min(y + step, y1));
    const rgba = x1 - x0 === photo.width ? rows : columns(rows, photo.width, x0, x1);
    await channel.call("rows", { frame, rgba }, [rgba.buffer]);
  }
}

/** @param {Uint8ClampedArray} rows (n w 4) @param {number} width w @param {number} x0 @param {number} x1 */
function columns(rows, width, x0, x1) {
  const count = rows.length / (4 * width);
  const out = new Uint8ClampedArray(count * (x1 - x0) * 4);
  for (let y = 0; y < count; y++) {
    out.set(rows.subarray((y * width + x0) * 4, (y * width + x1) * 4), y * (x1 - x0) * 4);
  }
  return out;
}

/**
 * The model on a worker that has passed the check.
 *
 * @param {Channel} channel
 * @param {ModelInfo} info
 * @param {Candidate} candidate
 * @param {Check} check
 * @param {{ name: string, reason: string }[]} rejected
 * @returns {Model}
 */
function connected(channel, info, { name, threads, half }, check, rejected) {
  let next = 1;
  /** @type {Map<number, Photo>} */
  const photos = new Map();
  const queue = predictions(channel);
  /** @param {Embedding} embedding @param {import("./types.js").Prompt} prompt @param {Float32Array | null} maskInput */
  const request = (embedding, prompt, maskInput) => {
    checkPrompt(prompt, embedding.width, embedding.height);
    if (maskInput && maskInput.length !== info.mask_size ** 2) throw new PromptError("maskInput: pass one mask (s s)");
    return { photo: embedding.id, prompt, maskInput };
  };
  /** @param {number} id @param {{ frame: number, crop: [number, number, number, number] }} request */
  const sendCrop = async (id, { frame, crop }) => {
    const photo = photos.get(id);
    if (!photo) throw new Error("the photo has been released");
    await sendFrame(channel, frame, photo, crop);
  };
  return {
    info,
    backend: { name, threads, precision: info.precision, half, isolated: self.crossOriginIsolated, check, rejected },
    async encode(photo) {
      const id = next++;
      const { width, height } = photo;
      await sendFrame(channel, id, photo, [0, 0, width, height]);
      const { filled, ms, frameMs } = await channel.call("encode", { frame: id });
      photos.set(id, photo);
      return { id, width, height, filled, ms, frameMs };
    },
    async predict(embedding, prompt, { maskInput = null } = {}) {
      return queue.click(request(embedding, prompt, maskInput));
    },
    async hover(embedding, prompt) {
      return queue.hover(request(embedding, prompt, null));
    },
    async everything(embedding, options = {}, { onProgress = () => {}, signal } = {}) {
      signal?.throwIfAborted();
      const call = next++;
      const abort = () => void channel.call("abort", { call }).catch(() => {});
      signal?.addEventListener("abort", abort);
      /** @type {Error | null} */
      let failed = null;
      try {
        return await channel.call("everything", { photo: embedding.id, options, call }, [], (progress) => {
          if (!progress.crop) {
            onProgress(progress);
            return;
          }
          sendCrop(embedding.id, progress).catch((error) => {
            failed = error;
            abort();
          });
        });
      } catch (error) {
        throw failed ?? error;
      } finally {
        signal?.removeEventListener("abort", abort);
      }
    },
    mask(embedding, logits, { fillHoles = 0, dropIslands = 0 } = {}) {
      return channel.call("mask", { photo: embedding.id, logits: logits.slice(), fillHoles, dropIslands });
    },
    release({ id }) {
      photos.delete(id);
      channel.call("release", { photo: id }).catch(() => {}); // of a model that has been closed
    },
    close() {
      photos.clear();
      channel.close();
    },
  };
}
