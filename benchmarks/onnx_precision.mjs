// Run one ONNX file in onnxruntime-web's WebAssembly runtime, with one thread; called by onnx_precision.py.
//
//     node onnx_precision.mjs NODE_MODULES JOB.json
//
// The job names the file, its inputs (float32, in raw files), an output and the file to write it to.
import { readFileSync, writeFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [modules, jobFile] = process.argv.slice(2);
const ort = await import(pathToFileURL(`${modules}/onnxruntime-web/dist/ort.wasm.min.mjs`));
ort.env.wasm.numThreads = 1;
const job = JSON.parse(readFileSync(jobFile));
const session = await ort.InferenceSession.create(new Uint8Array(readFileSync(job.model)));
const inputs = {};
for (const [name, { file, dims }] of Object.entries(job.inputs)) {
  const bytes = readFileSync(file);
  inputs[name] = new ort.Tensor("float32", new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4), dims);
}
const times = [];
let result;
for (let round = 0; round <= job.rounds; round++) {
  const began = performance.now();
  result = await session.run(inputs, [job.output]);
  times.push(performance.now() - began);
}
const values = result[job.output].data;
writeFileSync(job.result, new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
const sorted = times.slice(1).sort((a, b) => a - b);
console.log(JSON.stringify({ milliseconds: sorted[Math.floor(sorted.length / 2)] }));
