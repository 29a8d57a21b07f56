/** @file What clicks, drags and keys on the photo do, and the line below the photo. */

import { announce, button, dialog, element, input, showError } from "./dom.js";
import { listenToKeys } from "./keys.js";
import { listenToPointers } from "./pointer.js";
import { checkPrompt } from "./prompts.js";
import { say, TEXTS } from "./strings.js";
import { EMPTY, isEmpty } from "./work.js";

/** @typedef {import("./app.js").App} App */
/** @typedef {import("./pointer.js").Tool} Tool */
/** @typedef {[number, number, number, number]} Box */

const { touchInside, touchOutside, touchMove, box: boxHint } = say.hints;
/** @type {Record<Tool, string>} */
const TOUCH_HINTS = { inside: touchInside, outside: touchOutside, box: boxHint, move: touchMove };

/**
 * @typedef {object} Panels
 * @property {ReturnType<typeof import("./panel_mask.js").attachMaskPanel>} maskPanel
 * @property {ReturnType<typeof import("./panel_objects.js").attachObjects>} objectsPanel
 * @property {ReturnType<typeof import("./panel_everything.js").attachEverything>} everything
 */

/** @param {App} app @param {Panels} panels */
export function listenToActions(app, { maskPanel, objectsPanel, everything }) {
  const { work, drafting, stage } = app;
  /** @type {Tool} */
  let tool = "inside";
  /** @type {[number, number] | null} */
  let corner = null; // first corner of a box from the keyboard
  const touching = matchMedia("(hover: none) and (pointer: coarse)").matches;

  const refreshStatus = () => {
    const { hints } = say;
    let hint = work.current ? (touching ? TOUCH_HINTS[tool] : hints[tool]) : hints.none;
    if (corner) hint = hints.corner;
    if (app.candidates) hint = hints.everything;
    if (app.embedding && !drafting.previews) hint += ` ${say.slowPreview}`;
    if (app.photo && !app.model) hint = say.waitForModel;
    element("hint").textContent = hint;
    element("times").textContent = app.embedding ? say.times(app.embedding.ms, drafting.prediction?.ms ?? 0) : "";
  };
  app.refreshStatus = refreshStatus;

  /** @param {Tool} next */
  const setTool = (next) => {
    tool = next;
    for (const radio of document.querySelectorAll("input[name=mode]")) {
      if (radio instanceof HTMLInputElement) radio.checked = radio.value === next;
    }
    stage.canvas.dataset.tool = next;
    hover(null);
    refreshStatus();
  };
  for (const radio of document.querySelectorAll("input[name=mode]")) {
    radio.addEventListener("change", () => {
      if (radio instanceof HTMLInputElement) setTool(/** @type {Tool} */ (radio.value));
    });
  }

  /** @param {import("./types.js").Prompt} prompt @returns {boolean} whether the model takes it; says why not */
  const usable = (prompt) => {
    const { model, photo } = app;
    if (!model || !photo) {
      announce(say.waitForModel);
      return false;
    }
    try {
      checkPrompt(prompt, photo.width, photo.height);
      return true;
    } catch (error) {
      showError(error);
      return false;
    }
  };

  /** @param {number} x @param {number} y @param {0 | 1} label */
  const addPoint = (x, y, label) => {
    const { points, box } = work.state.draft;
    const [column, row] = [Math.floor(x), Math.floor(y)];
    const next = /** @type {[number, number, number][]} */ ([...points, [column, row, label]]);
    if (!usable({ points: next, box })) return;
    app.lastAction = say.pointAt(column, row, label);
    work.commitDraft({ points: next, choice: null });
  };

  /** @param {Box} box */
  const setBox = (box) => {
    if (!usable({ points: work.state.draft.points, box })) return;
    app.lastAction = say.boxDone;
    work.commitDraft({ box, choice: null });
  };

  // ------------------------------------------------------------------------------------------------ preview
  /** @type {[number, number, 0 | 1] | null} */
  let hovered = null;
  let asked = 0; // animation frame in which the preview is asked for
  /** @param {[number, number, 0 | 1] | null} position */
  const hover = (position) => {
    hovered = position;
    if (!position && stage.preview) {
      stage.preview = null;
      stage.invalidate();
    }
    if (position && !asked) asked = requestAnimationFrame(() => void preview());
  };
  const preview = async () => {
    asked = 0;
    const { points, box, maskInput } = work.state.draft;
    if (!hovered || maskInput || app.candidates || !app.embedding || !app.photo) return;
    const [x, y, label] = hovered;
    if (!label && !points.length && !box) return; // nothing to take away from
    /** @type {[number, number, number]} */
    const point = [Math.floor(x), Math.floor(y), label];
    const prompt = { points: [...points, point], box };
    try {
      checkPrompt(prompt, app.photo.width, app.photo.height);
    } catch {
      return; // a click will say why
    }
    const draft = work.state.draft;
    const slow = !drafting.previews;
    const path = await drafting.preview(prompt);
    if (slow === drafting.previews) refreshStatus();
    if (!path || !hovered || work.state.draft !== draft) return;
    stage.preview = path;
    stage.invalidate();
  };

  // ------------------------------------------------------------------------------------------------ pointer, keys
  listenToPointers(stage, {
    tool: () => tool,
    click(x, y, label) {
      corner = null;
      if (app.candidates) everything.toggle(x, y);
      else addPoint(x, y, label);
    },
    box(box) {
      corner = null;
      if (!app.candidates) setBox(box);
    },
    hover,
  });

  const clear = () => {
    if (isEmpty(work.state.draft)) return;
    app.lastAction = "";
    work.commit({ draft: EMPTY });
    announce(say.nothing);
  };
  const undo = () => {
    app.lastAction = TEXTS.undo;
    if (work.undo()) announce(TEXTS.undo);
  };
  const redo = () => {
    app.lastAction = TEXTS.redo;
    if (work.redo()) announce(TEXTS.redo);
  };
  /** @param {() => void} change */
  const look = (change) => {
    if (!stage.photo) return;
    change();
    stage.invalidate();
  };
  const zoom = {
    in: () => look(() => stage.view.zoomStep(1)),
    out: () => look(() => stage.view.zoomStep(-1)),
    fit: () => look(() => stage.view.fit()),
  };
  /** @param {1 | -1} step */
  const turn = (step) => {
    const { photos, current } = work;
    if (photos.length < 2 || !current) return;
    void app.show(photos[(photos.indexOf(current) + step + photos.length) % photos.length]);
  };
  /** @param {number} number */
  const choose = (number) => () => maskPanel.chooseNumber(number);

  listenToKeys(stage, {
    enabled: () => input("single-keys").checked,
    single: {
      i: () => setTool("inside"),
      o: () => setTool("outside"),
      b: () => setTool("box"),
      h: () => setTool("move"),
      1: choose(1),
      2: choose(2),
      3: choose(3),
      4: choose(4),
      m: () => app.setAmount(drafting.amount === 1 ? 3 : drafting.amount === 3 ? 4 : 1),
      r: () => app.refine(),
      a: () => input("label").focus(),
      c: clear,
      e: everything.start,
      v: objectsPanel.toggleAll,
      "+": zoom.in,
      "=": zoom.in,
      "-": zoom.out,
      0: zoom.fit,
      "[": () => turn(-1),
      "]": () => turn(1),
      "?": () => dialog("help-dialog").showModal(),
    },
    undo,
    redo,
    place(x, y, label) {
      if (app.candidates) everything.toggle(x + 0.5, y + 0.5);
      else if (tool === "box") setCorner(x, y);
      else addPoint(x, y, label ?? (tool === "outside" ? 0 : 1));
    },
    corner: (x, y) => setCorner(x, y),
    cancel() {
      if (corner) {
        corner = null;
        stage.rubber = null;
      } else if (stage.crosshair) {
        stage.crosshair = null;
        hover(null);
      } else if (!everything.cancel()) return false;
      stage.invalidate();
      refreshStatus();
      return true;
    },
    moved(x, y) {
      if (corner) stage.rubber = boxBetween(corner, [x, y]);
      else if (tool !== "box" && tool !== "move") hover([x, y, tool === "outside" ? 0 : 1]);
      announce(say.crosshair(x, y));
    },
  });

  /** @param {number} x @param {number} y */
  const setCorner = (x, y) => {
    if (app.candidates) return;
    if (!corner) {
      corner = [x, y];
      stage.rubber = boxBetween(corner, corner);
      announce(say.cornerSet);
    } else {
      const box = boxBetween(corner, [x, y]);
      corner = null;
      stage.rubber = null;
      setBox(box);
    }
    stage.invalidate();
    refreshStatus();
  };

  // ------------------------------------------------------------------------------------------------ buttons, changes
  button("undo").onclick = undo;
  button("redo").onclick = redo;
  button("clear").onclick = clear;
  button("zoom-in").onclick = zoom.in;
  button("zoom-out").onclick = zoom.out;
  button("zoom-fit").onclick = zoom.fit;

  const refresh = () => {
    const { draft } = work.state;
    button("undo").disabled = !work.current?.history.canUndo;
    button("redo").disabled = !work.current?.history.canRedo;
    button("clear").disabled = isEmpty(draft);
    stage.points = draft.points;
    stage.box = draft.box;
    stage.preview = null;
    app.drawObjects();
    void drafting.update(draft);
    refreshStatus();
  };
  work.addEventListener("state", refresh);
  drafting.addEventListener("masks", () => {
    stage.draft = drafting.path;
    stage.preview = null;
    stage.invalidate();
    refreshStatus();
  });
  drafting.addEventListener("exact", async () => {
    stage.draft = drafting.path;
    stage.invalidate();
    const { exact, prediction, choice } = drafting;
    const mask = await exact;
    if (!mask || !prediction || drafting.exact !== exact) return;
    const score = say.score(app.model?.info.score ?? "", prediction.scores[choice]);
    announce(say.predicted(app.lastAction || say.changed, mask.area / (mask.width * mask.height), score));
  });
  drafting.addEventListener("failure", (event) => {
    stage.draft = null;
    stage.invalidate();
    if (event instanceof CustomEvent) showError(event.detail);
  });
  app.addEventListener("photo", () => {
    corner = null;
    stage.draft = null;
    refresh();
  });
  setTool("inside");
}

/** @param {[number, number]} a pixel @param {[number, number]} b @returns {Box} that holds both */
function boxBetween([ax, ay], [bx, by]) {
  return [Math.min(ax, bx), Math.min(ay, by), Math.max(ax, bx) + 1, Math.max(ay, by) + 1];
}
