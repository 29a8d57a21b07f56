/**
 * @file The worker: runs the model. Messages are { id, type, ... }; the answer to each is { id, result } or
 * { id, error: { name, message } }, after any number of { id, progress }.
 */

import { findEverything } from "./everything.js";
import { FrameBuilder, normalised } from "./frame.js";
import { Upscaler } from "./masks.js";
import { promptInputs } from "./prompts.js";
import { clean } from "./regions.js";
import { areaOf, boxOf } from "./runs.js";
import { message, Runtime } from "./runtime.js";

/** @typedef {import("./types.js").ModelInfo} ModelInfo */
/** @typedef {import("./runtime.js").Encoded} Encoded */

/** @type {Runtime | null} */
let loaded = null;
/** @type {Map<number, { builder: FrameBuilder, began: number }>} */
const frames = new Map();
/** @type {Map<number, Encoded>} */
const photos = new Map();
/** @type {Set<number>} */
const aborted = new Set();
/** @type {Promise<unknown>} */
let last = Promise.resolve();

/** Run the model's calls one after the other. @template T @param {() => Promise<T>} call @returns {Promise<T>} */
function inTurn(call) {
  const next = last.then(call);
  last = next.catch(() => {});
  return next;
}

/** @returns {Runtime} */
function runtime() {
  if (!loaded) throw new Error("the model isn't loaded");
  return loaded;
}

/** @param {number} id @returns {Encoded} */
function photo(id) {
  const found = photos.get(id);
  if (!found) throw new Error("the photo has been released");
  return found;
}

/**
 * @param {number} id
 * @returns {Promise<{ filled: [number, number], ms: number, frameMs: number, encoded: Encoded }>}
 */
async function encodeFrame(id) {
  const frame = frames.get(id);
  if (!frame) throw new Error("no frame to encode");
  frames.delete(id);
  const { info } = runtime();
  const { pixels, filled } = frame.builder.finish();
  const input = normalised(pixels, filled, info.image_size, info.image);
  const began = performance.now();
  const { width, height } = frame.builder;
  const encoded = await inTurn(() => runtime().encode(input, { width, height, filled }));
  return { filled, ms: performance.now() - began, frameMs: began - frame.began, encoded };
}

/** @type {Record<string, (data: any, progress: (value: object) => void) => any>} */
const handlers = {
  /** @param {{ base: string, info: ModelInfo, backend: "wasm" | "webgpu", threads: number }} data */
  async load({ base, info, backend, threads }, progress) {
    loaded = await Runtime.load(base, info, backend, threads, progress);
  },

  /** @param {{ frame: number, width: number, height: number }} data */
  frame({ frame, width, height }) {
    const builder = new FrameBuilder(width, height, runtime().info.image_size);
    frames.set(frame, { builder, began: performance.now() });
  },

  /** @param {{ frame: number, rgba: Uint8ClampedArray }} data */
  rows({ frame, rgba }) {
    frames.get(frame)?.builder.add(rgba);
  },

  /** @param {{ frame: number }} data */
  async encode({ frame }) {
    const { encoded, ...result } = await encodeFrame(frame);
    photos.set(frame, encoded);
    return result;
  },

  /** @param {{ photo: number, prompt: import("./types.js").Prompt, maskInput: Float32Array | null }} data */
  async predict({ photo: id, prompt, maskInput }) {
    const encoded = photo(id);
    const { coords, labels } = promptInputs(prompt, encoded);
    const began = performance.now();
    const { logits, scores } = await inTurn(() => runtime().decode(encoded, coords, labels, maskInput));
    return { logits, scores, ms: performance.now() - began };
  },

  /** @param {{ photo: number, logits: Float32Array, fillHoles: number, dropIslands: number }} data */
  mask({ photo: id, logits, fillHoles, dropIslands }) {
    const { width, height, filled } = photo(id);
    const { mask_size: side, image_size: size } = runtime().info;
    const { counts: raw } = new Upscaler(side, size, filled, width, height).measure(logits);
    const counts = clean(raw, width, height, fillHoles, dropIslands);
    return { width, height, counts, area: areaOf(counts), box: boxOf(counts, height) };
  },

  /** @param {{ photo: number, options: import("./types.js").EverythingOptions, call: number }} data */
  async everything({ photo: id, options, call }, progress) {
    const { info } = runtime();
    try {
      return await findEverything(photo(id), options, {
        info,
        decode: (encoded, coords, labels) => inTurn(() => runtime().decode(encoded, coords, labels, null)),
        crop: async (box) => {
          progress({ crop: box, frame: -call });
          while (!frames.get(-call)?.builder.complete) await checked(call);
          return (await encodeFrame(-call)).encoded;
        },
        pause: () => checked(call),
        onProgress: progress,
      });
    } finally {
      aborted.delete(call);
      frames.delete(-call);
    }
  },

  /** @param {{ call: number }} data */
  abort({ call }) {
    aborted.add(call);
  },

  /** @param {{ photo: number }} data */
  release({ photo: id }) {
    photos.delete(id);
  },
};

/** Let messages arrive, then see whether a call has been aborted. @param {number} call */
async function checked(call) {
  await new Promise((resolve) => {
    setTimeout(resolve, 0);
  });
  if (aborted.has(call)) throw new DOMException("stopped", "AbortError");
}

self.onmessage = async (event) => {
  const { id, type, ...data } = event.data;
  try {
    const result = await handlers[type](data, (progress) => self.postMessage({ id, progress }));
    self.postMessage({ id, result });
  } catch (error) {
    const name = error instanceof Error || error instanceof DOMException ? error.name : "Error";
    self.postMessage({ id, error: { name, message: message(error) } });
  }
};
