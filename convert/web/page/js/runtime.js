/** @file ONNX Runtime Web: loads it, and runs the model's parts. Used by the worker. */

import { download, FileError } from "./download.js";

/** @typedef {import("./types.js").ModelInfo} ModelInfo */
/** @typedef {import("./types.js").LoadProgress} LoadProgress */
/** @typedef {(progress: LoadProgress) => void} OnProgress */

/**
 * The parts of ONNX Runtime's interface that are used here.
 *
 * @typedef {{ data: Float32Array, dims: readonly number[] }} Tensor
 * @typedef {Record<string, Tensor>} Tensors
 * @typedef {{ inputNames: string[], outputNames: string[], run: (feeds: Tensors) => Promise<Tensors>,
 *   release: () => Promise<void> }} Session
 * @typedef {{ env: { logLevel: string, wasm: { wasmPaths?: object, wasmBinary?: Uint8Array, numThreads?: number } },
 *   Tensor: new (type: "float32", data: Float32Array, dims: number[]) => Tensor,
 *   InferenceSession: { create: (model: Uint8Array, options: object) => Promise<Session> } }} Ort
 */

const RUNTIMES = {
  wasm: { script: "ort.wasm.min.mjs", binary: "ort-wasm-simd-threaded" },
  webgpu: { script: "ort.webgpu.min.mjs", binary: "ort-wasm-simd-threaded.asyncify" },
};

/**
 * An encoded photo.
 *
 * @typedef {object} Encoded
 * @property {number} width
 * @property {number} height
 * @property {[number, number]} filled
 * @property {Tensor} embedding (1 c g g)
 * @property {Tensors} image what the graph `image` gives without an earlier mask
 */

/** The model's sessions. Calls must not overlap. */
export class Runtime {
  /** @param {ModelInfo} info @param {Ort} ort @param {{ encoder: Session, image: Session, decoder: Session }} parts */
  constructor(info, ort, parts) {
    this.info = info;
    this.parts = parts;
    this.tensor = (/** @type {Float32Array} */ data, /** @type {number[]} */ dims) =>
      new ort.Tensor("float32", data, dims);
    const side = info.mask_size;
    this.noMask = this.tensor(new Float32Array(side * side), [1, 1, side, side]);
  }

  /**
   * Load the runtime and the model.
   *
   * @param {string} base URL of the site
   * @param {ModelInfo} info
   * @param {"wasm" | "webgpu"} backend
   * @param {number} threads
   * @param {OnProgress} onProgress
   * @returns {Promise<Runtime>}
   * @throws {FileError} a file is missing or damaged
   * @throws {Error} the backend doesn't work here
   */
  static async load(base, info, backend, threads, onProgress) {
    const { script, binary } = RUNTIMES[backend];
    /** @param {string} what @returns {(loaded: number, total: number) => void} */
    const report = (what) => (loaded, total) => onProgress({ what, loaded, total });
    const wasm = await download(base, `ort/${binary}.wasm`, { onProgress: report("runtime") });
    /** @type {Ort} */
    let ort;
    try {
      ort = await import(new URL(`ort/${script}`, base).href);
    } catch (error) {
      throw new FileError(`ort/${script}: can't be loaded (${message(error)}); copy the folder of the site again`);
    }
    ort.env.logLevel = "error";
    ort.env.wasm.numThreads = threads;
    ort.env.wasm.wasmBinary = wasm;
    ort.env.wasm.wasmPaths = { mjs: new URL(`ort/${binary}.mjs`, base).href };
    /** @type {Record<string, Session>} */
    const parts = {};
    for (const [what, { file, bytes, sha256 }] of Object.entries(info.parts)) {
      const content = await download(base, `model/${file}`, { bytes, sha256, onProgress: report(what) });
      parts[what] = await ort.InferenceSession.create(content, {
        executionProviders: [backend],
        graphOptimizationLevel: "all",
        logSeverityLevel: 3,
      });
    }
    return new Runtime(info, ort, /** @type {any} */ (parts));
  }

  /**
   * Encode a photo.
   *
   * @param {Float32Array} input (1 3 size size), normalised
   * @param {{ width: number, height: number, filled: [number, number] }} photo
   * @returns {Promise<Encoded>}
   */
  async encode(input, { width, height, filled }) {
    const { encoder } = this.parts;
    const side = this.info.image_size;
    const outputs = await encoder.run({ [encoder.inputNames[0]]: this.tensor(input, [1, 3, side, side]) });
    const embedding = outputs.image_embeddings ?? outputs[encoder.outputNames[0]];
    const image = await this.#prepare(embedding, null);
    return { width, height, filled, embedding, image };
  }

  /**
   * Decode a prompt of n points.
   *
   * @param {Encoded} encoded
   * @param {Float32Array} coords (n 2) in the frame
   * @param {Float32Array} labels (n)
   * @param {Float32Array | null} maskInput (s s) of an earlier prediction
   * @returns {Promise<{ logits: Float32Array, scores: Float32Array }>} (4 s s) and (4)
   */
  async decode(encoded, coords, labels, maskInput) {
    const { decoder } = this.parts;
    const image = maskInput ? await this.#prepare(encoded.embedding, maskInput) : encoded.image;
    /** @type {Tensors} */
    const given = {
      ...image,
      point_coords: this.tensor(coords, [1, labels.length, 2]),
      point_labels: this.tensor(labels, [1, labels.length]),
    };
    const outputs = await decoder.run(pick(given, decoder.inputNames));
    return { logits: outputs.masks.data, scores: outputs.scores.data };
  }

  /** Free the memory of all sessions. */
  async release() {
    for (const session of Object.values(this.parts)) await session.release();
  }

  /** @param {Tensor} embedding @param {Float32Array | null} maskInput @returns {Promise<Tensors>} */
  async #prepare(embedding, maskInput) {
    const { image } = this.parts;
    const side = this.info.mask_size;
    const given = {
      image_embeddings: embedding,
      mask_input: maskInput ? this.tensor(maskInput, [1, 1, side, side]) : this.noMask,
      has_mask_input: this.tensor(new Float32Array([maskInput ? 1 : 0]), [1]),
    };
    return image.run(pick(given, image.inputNames));
  }
}

/** @param {Tensors} given @param {string[]} names @returns {Tensors} */
function pick(given, names) {
  const unknown = names.find((name) => !given[name]);
  if (unknown) throw new FileError(`model: this page doesn't know its input ${unknown}; write the site again`);
  return Object.fromEntries(names.map((name) => [name, given[name]]));
}

/** @param {unknown} error @returns {string} */
export function message(error) {
  return error instanceof Error ? error.message : String(error);
}
