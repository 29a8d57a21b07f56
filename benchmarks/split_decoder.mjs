// Times calls of ONNX files in onnxruntime-web's WebAssembly under node, in turns; see split_decoder.py.
// node split_decoder.mjs TASK.json; prints milliseconds per round of each call as JSON.
import fs from "node:fs";
import { pathToFileURL } from "node:url";

const task = JSON.parse(fs.readFileSync(process.argv[2], "utf8"));
const ort = await import(pathToFileURL(task.module).href);
ort.env.wasm.numThreads = task.threads;
ort.env.logLevel = "error";

const sessions = new Map(); // by file: calls share them
const calls = [];
for (const { name, file, inputs } of task.calls) {
  if (!sessions.has(file)) {
    sessions.set(file, await ort.InferenceSession.create(fs.readFileSync(file), { executionProviders: ["wasm"] }));
  }
  const feeds = {};
  for (const [key, { dims, file: path }] of Object.entries(inputs)) {
    const bytes = fs.readFileSync(path);
    const values = new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
    feeds[key] = new ort.Tensor("float32", values, dims);
  }
  calls.push({ name, session: sessions.get(file), feeds });
}

const times = Object.fromEntries(calls.map(({ name }) => [name, []]));
for (let round = 0; round <= task.rounds; round++) {
  for (const { name, session, feeds } of calls) {
    const began = performance.now();
    await session.run(feeds);
    if (round > 0) times[name].push(performance.now() - began); // the first is not counted
  }
}
fs.writeFileSync(1, JSON.stringify(times));
process.exit(0); // the runtime's threads would keep node alive
