/** @file Which backends there are to try on this machine. */

/**
 * @typedef {object} Candidate
 * @property {"wasm" | "webgpu"} name
 * @property {number} threads
 * @property {boolean} half whether it runs the files that compute in float16
 */

/** @typedef {"auto" | "float32" | "float16"} Arithmetic */

const MAX_THREADS = 8;

/**
 * The backends to try, in order.
 *
 * @param {"auto" | "wasm" | "webgpu"} backend
 * @param {number} threads
 * @param {Arithmetic} arithmetic auto: float16 where the graphics card computes in it; float16: on any backend, which
 *   outside of such cards computes in float32 all the same
 * @returns {Promise<{ chosen: Candidate[], rejected: { name: string, reason: string }[] }>}
 */
export async function candidates(backend, threads, arithmetic) {
  /** @type {Candidate[]} */
  const chosen = [];
  const rejected = [];
  if (backend !== "wasm") {
    const { reason, half } = await webgpu(backend === "webgpu");
    if (reason) rejected.push({ name: "WebGPU", reason });
    else {
      if (half && arithmetic !== "float32") chosen.push({ name: "webgpu", threads: 1, half: true });
      if (arithmetic !== "float16") chosen.push({ name: "webgpu", threads: 1, half: false });
    }
  }
  if (backend !== "webgpu") {
    const cores = navigator.hardwareConcurrency || 1;
    const suited = Math.min(MAX_THREADS, cores > 4 ? Math.ceil(cores / 2) : cores); // half the cores of phones are slow
    const most = self.crossOriginIsolated ? threads || suited : 1;
    const half = arithmetic === "float16";
    if (most > 1) chosen.push({ name: "wasm", threads: most, half });
    chosen.push({ name: "wasm", threads: 1, half });
  }
  return { chosen, rejected };
}

/**
 * @param {boolean} software whether an adapter in software will do
 * @returns {Promise<{ reason: string, half: boolean }>} why WebGPU can't be used, empty if it can be tried; and whether
 *   it computes in float16
 */
async function webgpu(software) {
  const gpu = /** @type {any} */ (navigator).gpu;
  if (!gpu) return { reason: "this browser doesn't have it", half: false };
  const adapter = await gpu.requestAdapter().catch(() => null);
  if (!adapter) return { reason: "no graphics adapter", half: false };
  const fallback = adapter.info?.isFallbackAdapter ?? adapter.isFallbackAdapter;
  const reason = fallback && !software ? "the adapter is software, slower than WebAssembly" : "";
  return { reason, half: adapter.features?.has("shader-f16") ?? false };
}

/** @param {Candidate} candidate @returns {string} */
export function title({ name, threads, half }) {
  const where = name === "webgpu" ? "WebGPU" : `WebAssembly, ${threads} thread${threads > 1 ? "s" : ""}`;
  return half ? `${where}, files in float16` : where;
}
