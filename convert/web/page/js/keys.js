/** @file The keyboard: shortcuts of the page, and the crosshair on the stage. */

/** @typedef {import("./canvas.js").Stage} Stage */

const STEP = 12; // CSS pixels of the crosshair's step; with shift one pixel of the photo

/** @type {Record<string, [number, number]>} */
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/**
 * @typedef {object} KeyActions
 * @property {Record<string, () => void>} single by key, lower case; not while typing, and only if `enabled`
 * @property {() => boolean} enabled whether single keys work; people who dictate switch them off
 * @property {() => void} undo
 * @property {() => void} redo
 * @property {(x: number, y: number, label: 0 | 1 | null) => void} place a point; null: the tool's label
 * @property {(x: number, y: number) => void} corner of a box at the crosshair
 * @property {() => boolean} cancel what is going on; whether there was anything
 * @property {(x: number, y: number) => void} moved the crosshair
 */

/**
 * @param {Stage} stage
 * @param {KeyActions} actions
 */
export function listenToKeys(stage, actions) {
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || document.querySelector("dialog[open]")) return;
    const typing = isText(event.target);
    const command = event.ctrlKey || event.metaKey;
    const key = event.key.toLowerCase();
    if (command && !event.altKey && !typing && (key === "z" || key === "y")) {
      if (key === "y" || event.shiftKey) actions.redo();
      else actions.undo();
      event.preventDefault();
      return;
    }
    if (command || event.altKey || typing) return;
    if (event.target === stage.canvas && stage.photo && onStage(event)) {
      event.preventDefault();
      return;
    }
    if (key === "escape" && actions.cancel()) event.preventDefault();
    else if (actions.enabled() && Object.hasOwn(actions.single, key)) {
      if (event.repeat && !["+", "-", "="].includes(key)) return;
      actions.single[key]();
      event.preventDefault();
    }
  });

  /** @param {KeyboardEvent} event @returns {boolean} whether the key meant the crosshair */
  const onStage = (event) => {
    const { view } = stage;
    const arrow = ARROWS[event.key];
    if (arrow) {
      const step = event.shiftKey ? 1 : Math.max(1, Math.round(STEP / view.scale));
      const { width, height } = view.photo;
      const [x, y] = stage.crosshair ?? middle(stage);
      const first = !stage.crosshair; // the first press shows the crosshair where it is
      stage.crosshair = [
        Math.min(width - 1, Math.max(0, x + (first ? 0 : arrow[0] * step))),
        Math.min(height - 1, Math.max(0, y + (first ? 0 : arrow[1] * step))),
      ];
      view.reveal(stage.crosshair[0] + 0.5, stage.crosshair[1] + 0.5);
      actions.moved(...stage.crosshair);
      stage.invalidate();
      return true;
    }
    if (event.key === "Enter" || event.key === " ") {
      if (!stage.crosshair) {
        stage.crosshair = middle(stage);
        actions.moved(...stage.crosshair);
        stage.invalidate();
      } else if (!event.repeat) actions.place(...stage.crosshair, event.shiftKey ? 0 : null);
      return true;
    }
    if (event.key.toLowerCase() === "k" && stage.crosshair && !event.repeat) {
      actions.corner(...stage.crosshair);
      return true;
    }
    return false;
  };
}

/** @param {Stage} stage @returns {[number, number]} the photo's pixel in the middle of what is visible */
function middle({ view }) {
  const { width, height } = view.photo;
  const [x, y] = view.toPhoto(view.stage.width / 2, view.stage.height / 2);
  return [Math.min(width - 1, Math.max(0, Math.floor(x))), Math.min(height - 1, Math.max(0, Math.floor(y)))];
}

const NO_TEXT = ["radio", "checkbox", "range", "button", "file"]; // kinds of inputs

/** @param {EventTarget | null} target @returns {boolean} whether keys are text there */
function isText(target) {
  if (!(target instanceof HTMLElement)) return false;
  if (target instanceof HTMLInputElement) return !NO_TEXT.includes(target.type);
  return target.isContentEditable || ["TEXTAREA", "SELECT"].includes(target.tagName);
}
