/** @file Everything mode: find all masks of a photo, choose among them, add them as objects. */

import { announce, button, element, input, message, progress, select, showError } from "./dom.js";
import { pathOf } from "./contours.js";

import { say } from "./strings.js";

/** @typedef {import("./app.js").App} App */
/** @typedef {import("./types.js").FoundMask} FoundMask */
/** @typedef {{ mask: FoundMask, path: Path2D, chosen: boolean, colour: number }} Candidate */

// SAM's limits, and lower ones for models with a small frame, which are less certain of their masks.
const LIMITS = { usual: ["0.88", "0.95"], small: ["0.6", "0.7"] };
const SMALL = 256; // side of the frame

/** @param {App} app */
export function attachEverything(app) {
  const { work, stage } = app;
  /** @type {AbortController | null} */
  let running = null;

  const refresh = () => {
    const found = app.candidates;
    element("everything-setup").hidden = running !== null || found !== null;
    element("everything-running").hidden = running === null;
    element("everything-found").hidden = running !== null || found === null;
    button("everything").disabled = !app.embedding;
    const chosen = found?.filter((candidate) => candidate.chosen).length ?? 0;
    button("everything-add").textContent = say.everythingAdd(chosen);
    button("everything-add").disabled = !chosen;
    app.drawObjects();
  };

  /** @param {Candidate[] | null} found */
  const setFound = (found) => {
    app.candidates = found;
    app.refreshStatus();
    refresh();
  };

  app.addEventListener("model", () => {
    const [score, stability] = (app.model?.info.image_size ?? 0) <= SMALL ? LIMITS.small : LIMITS.usual;
    input("least-score").value = score;
    input("least-stability").value = stability;
  });
  app.addEventListener("photo", () => {
    running?.abort();
    setFound(null);
  });

  const start = async () => {
    const { model, embedding } = app;
    if (!model || !embedding || running) return;
    const controller = new AbortController();
    running = controller;
    const bar = progress("everything-bar");
    bar.removeAttribute("value");
    element("everything-text").textContent = say.everythingRunning(0, 0, 0);
    refresh();
    button("everything-cancel").focus();
    const began = performance.now();
    const options = {
      pointsPerSide: Number(select("grid").value),
      scoreThreshold: input("least-score").valueAsNumber || 0,
      stabilityThreshold: input("least-stability").valueAsNumber || 0,
      minArea: input("least-area").valueAsNumber || 0,
    };
    let told = began;
    try {
      const masks = await model.everything(embedding, options, {
        signal: controller.signal,
        onProgress({ done, total, found }) {
          bar.max = total || 1;
          bar.value = done;
          const text = say.everythingRunning(done, total, found);
          element("everything-text").textContent = text;
          if (performance.now() - told > 4000) {
            told = performance.now();
            announce(text);
          }
        },
      });
      running = null;
      if (app.embedding !== embedding) return;
      if (!masks.length) {
        message(say.everythingNothing, "error");
        setFound(null);
        /** @type {HTMLDetailsElement} */ (element("limits")).open = true;
        button("everything").focus();
        return;
      }
      const { height } = embedding;
      const sorted = [...masks].sort((a, b) => b.area - a.area); // small ones are drawn above large ones
      setFound(sorted.map((mask, i) => ({ mask, path: pathOf(mask, height), chosen: true, colour: i })));
      const text = say.everythingFound(masks.length, performance.now() - began);
      element("everything-result").textContent = text;
      announce(text);
      button("everything-add").focus();
    } catch (error) {
      running = null;
      refresh();
      if (error instanceof DOMException && error.name === "AbortError") announce(say.everythingCancelled);
      else showError(error);
      if (app.embedding) button("everything").focus();
    }
  };

  button("everything").onclick = () => void start();
  button("everything-cancel").onclick = () => running?.abort();
  /** @param {boolean} chosen */
  const chooseAll = (chosen) => setFound(app.candidates?.map((candidate) => ({ ...candidate, chosen })) ?? null);
  button("everything-all").onclick = () => chooseAll(true);
  button("everything-none").onclick = () => chooseAll(false);
  const discard = () => {
    setFound(null);
    button("everything").focus();
  };
  button("everything-discard").onclick = discard;
  button("everything-add").onclick = () => {
    const { objects } = work.state;
    let next = work.nextColour();
    const label = input("label").value.trim();
    const fresh = (app.candidates ?? [])
      .filter(({ chosen }) => chosen)
      .map(({ mask }) => work.makeObject(mask, label, { score: mask.score, colour: next++ }));
    work.commit({ objects: [...objects, ...fresh] });
    announce(say.objects(objects.length + fresh.length));
    discard();
  };
  refresh();

  return {
    start: () => void start(),
    refresh,
    /** @returns {boolean} whether there was something to leave */
    cancel() {
      if (running) running.abort();
      else if (app.candidates) discard();
      else return false;
      return true;
    },
    /** Choose or drop the smallest mask at a pixel. @param {number} x @param {number} y */
    toggle(x, y) {
      const found = app.candidates;
      if (!found) return;
      const under = found.filter(({ path }) => inside(stage.context, path, x, y));
      const hit = under.at(-1);
      if (!hit) return;
      setFound(found.map((candidate) => (candidate === hit ? { ...hit, chosen: !hit.chosen } : candidate)));
      announce(say.everythingToggled(!hit.chosen, (app.candidates ?? []).filter(({ chosen }) => chosen).length));
    },
  };
}

/** @param {CanvasRenderingContext2D} context @param {Path2D} path @param {number} x @param {number} y */
function inside(context, path, x, y) {
  context.save();
  context.setTransform(1, 0, 0, 1, 0, 0);
  const result = context.isPointInPath(path, x, y, "evenodd");
  context.restore();
  return result;
}
