/** @file Which backends there are to try on this machine. */

/** @typedef {{ name: "wasm" | "webgpu", threads: number }} Candidate */

const MAX_THREADS = 8;

/**
 * The backends to try, in order.
 *
 * @param {"auto" | "wasm" | "webgpu"} backend
 * @param {number} threads
 * @returns {Promise<{ chosen: Candidate[], rejected: { name: string, reason: string }[] }>}
 */
export async function candidates(backend, threads) {
  /** @type {Candidate[]} */
  const chosen = [];
  const rejected = [];
  if (backend !== "wasm") {
    const reason = await webgpuFault(backend === "webgpu");
    if (reason) rejected.push({ name: "WebGPU", reason });
    else chosen.push({ name: "webgpu", threads: 1 });
  }
  if (backend !== "webgpu") {
    const cores = navigator.hardwareConcurrency || 1;
    const suited = Math.min(MAX_THREADS, cores > 4 ? Math.ceil(cores / 2) : cores); // half the cores of phones are slow
    const most = self.crossOriginIsolated ? threads || suited : 1;
    if (most > 1) chosen.push({ name: "wasm", threads: most });
    chosen.push({ name: "wasm", threads: 1 });
  }
  return { chosen, rejected };
}

/**
 * @param {boolean} software whether an adapter in software will do
 * @returns {Promise<string>} why WebGPU can't be used; empty if it can be tried
 */
async function webgpuFault(software) {
  const gpu = /** @type {any} */ (navigator).gpu;
  if (!gpu) return "this browser doesn't have it";
  const adapter = await gpu.requestAdapter().catch(() => null);
  if (!adapter) return "no graphics adapter";
  const fallback = adapter.info?.isFallbackAdapter ?? adapter.isFallbackAdapter;
  if (fallback && !software) return "the adapter is software, slower than WebAssembly";
  return "";
}

/** @param {Candidate} candidate @returns {string} */
export function title({ name, threads }) {
  return name === "webgpu" ? "WebGPU" : `WebAssembly, ${threads} thread${threads > 1 ? "s" : ""}`;
}
