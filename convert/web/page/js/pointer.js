/** @file Mouse, pen and touch on the stage become actions. */

/** @typedef {import("./canvas.js").Stage} Stage */
/** @typedef {"inside" | "outside" | "box" | "move"} Tool */

/**
 * Positions are in pixels of the photo, with fractions.
 *
 * @typedef {object} Actions
 * @property {() => Tool} tool
 * @property {(x: number, y: number, label: 0 | 1) => void} click
 * @property {(box: [number, number, number, number]) => void} box
 * @property {(position: [number, number, 0 | 1] | null) => void} hover
 */

const DRAG = 5; // CSS pixels from which a press is a drag
const DRAG_TOUCH = 10;
const WHEEL = 0.0015; // zoom per pixel of the wheel
const LINE = 16; // pixels of a wheel's line

/**
 * @param {Stage} stage
 * @param {Actions} actions
 */
export function listenToPointers(stage, actions) {
  const { canvas, view } = stage;
  /** @type {Map<number, { x: number, y: number }>} */
  const pressed = new Map(); // pointers that are down
  /** @type {{ x: number, y: number, label: 0 | 1, kind: "press" | "box" | "pan" | "pinch" } | null} */
  let gesture = null;

  /** @param {MouseEvent} event @returns {{ x: number, y: number }} on the stage */
  const place = (event) => {
    const { left, top } = canvas.getBoundingClientRect();
    return { x: event.clientX - left, y: event.clientY - top };
  };

  /** @param {MouseEvent} event @returns {0 | 1} */
  const labelOf = (event) => (event.shiftKey || event.button === 2 || actions.tool() === "outside" ? 0 : 1);

  /**
   * @param {number} x
   * @param {number} y
   * @returns {[number, number, number, number]} the box from the gesture's start, on the photo
   */
  const boxTo = (x, y) => {
    const { width, height } = view.photo;
    const [ax, ay] = view.toPhoto(gesture?.x ?? x, gesture?.y ?? y);
    const [bx, by] = view.toPhoto(x, y);
    /** @param {number} value @param {number} high */
    const within = (value, high) => Math.min(high, Math.max(0, value));
    return [
      Math.floor(within(Math.min(ax, bx), width)),
      Math.floor(within(Math.min(ay, by), height)),
      Math.ceil(within(Math.max(ax, bx), width)),
      Math.ceil(within(Math.max(ay, by), height)),
    ];
  };

  const end = () => {
    gesture = null;
    stage.rubber = null;
    canvas.classList.remove("panning");
    stage.invalidate();
  };

  canvas.addEventListener("pointerdown", (event) => {
    if (!stage.photo) return;
    const { x, y } = place(event);
    pressed.set(event.pointerId, { x, y });
    canvas.setPointerCapture(event.pointerId);
    canvas.focus({ preventScroll: true });
    actions.hover(null);
    stage.crosshair = null;
    if (pressed.size === 2) {
      end();
      gesture = { x, y, label: 1, kind: "pinch" };
    } else if (pressed.size === 1) {
      const pan = event.button === 1 || actions.tool() === "move";
      gesture = { x, y, label: labelOf(event), kind: pan ? "pan" : "press" };
      if (pan) canvas.classList.add("panning");
    }
    event.preventDefault();
  });

  canvas.addEventListener("pointermove", (event) => {
    if (!stage.photo) return;
    const { x, y } = place(event);
    const before = pressed.get(event.pointerId);
    if (!before || !gesture) {
      if (event.pointerType === "mouse" && actions.tool() !== "move") hover(event, x, y);
      return;
    }
    if (gesture.kind === "press") {
      const touch = event.pointerType === "touch";
      if (Math.hypot(x - gesture.x, y - gesture.y) < (touch ? DRAG_TOUCH : DRAG)) return;
      // A finger that isn't drawing a box moves the photo; a mouse always draws.
      gesture.kind = touch && actions.tool() !== "box" ? "pan" : "box";
    }
    if (gesture.kind === "pinch") pinch(event.pointerId, x, y);
    else if (gesture.kind === "pan") view.pan(x - before.x, y - before.y);
    else stage.rubber = boxTo(x, y);
    pressed.set(event.pointerId, { x, y });
    stage.invalidate();
  });

  /** @param {number} id @param {number} x @param {number} y */
  const pinch = (id, x, y) => {
    const other = [...pressed].find(([key]) => key !== id)?.[1];
    const before = pressed.get(id);
    if (!other || !before) return;
    const [was, is] = [before, { x, y }].map((p) => Math.hypot(p.x - other.x, p.y - other.y));
    const [middleX, middleY] = [(x + other.x) / 2, (y + other.y) / 2];
    view.pan((x - before.x) / 2, (y - before.y) / 2);
    if (was > 0 && is > 0) view.zoom(is / was, middleX, middleY);
  };

  /** @param {MouseEvent} event @param {number} x @param {number} y */
  const hover = (event, x, y) => {
    const [px, py] = view.toPhoto(x, y);
    const { width, height } = view.photo;
    const on = px >= 0 && py >= 0 && px < width && py < height;
    const label = event.shiftKey || actions.tool() === "outside" ? 0 : 1;
    actions.hover(on ? [px, py, label] : null);
  };

  canvas.addEventListener("pointerup", (event) => {
    const { x, y } = place(event);
    pressed.delete(event.pointerId);
    if (!gesture || !stage.photo) return;
    const { kind, label } = gesture;
    const box = kind === "box" ? boxTo(x, y) : null;
    const start = { x: gesture.x, y: gesture.y };
    if (pressed.size && kind === "pinch") return; // the last finger of a pinch does nothing
    end();
    if (box) {
      if (box[2] > box[0] && box[3] > box[1]) actions.box(box);
    } else if (kind === "press" && actions.tool() !== "box") {
      const [px, py] = view.toPhoto(start.x, start.y);
      const { width, height } = view.photo;
      if (px >= 0 && py >= 0 && px < width && py < height) actions.click(px, py, label);
    }
  });
  canvas.addEventListener("pointercancel", (event) => {
    pressed.delete(event.pointerId);
    end();
  });
  canvas.addEventListener("pointerleave", () => actions.hover(null));
  canvas.addEventListener("contextmenu", (event) => event.preventDefault()); // it is a click outside
  canvas.addEventListener(
    "wheel",
    (event) => {
      if (!stage.photo) return;
      event.preventDefault();
      const { x, y } = place(event);
      const unit = event.deltaMode === 1 ? LINE : event.deltaMode === 2 ? view.stage.height : 1;
      view.zoom(Math.exp(-event.deltaY * unit * WHEEL * (event.ctrlKey ? 5 : 1)), x, y);
      stage.invalidate();
    },
    { passive: false },
  );
}
