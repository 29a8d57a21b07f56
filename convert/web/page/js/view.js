/** @file Where the photo is on the stage: zoom and pan. Distances on the stage are in CSS pixels. */

const MARGIN = 16; // around a photo that fits
const DEEPEST = 48; // CSS pixels for one pixel of the photo
const STEP = 1.25;

export class View {
  constructor() {
    this.scale = 1; // CSS pixels per pixel of the photo
    this.x = 0; // of the photo's top left corner
    this.y = 0;
    this.photo = { width: 1, height: 1 };
    this.stage = { width: 1, height: 1 };
    this.fitted = true; // follows the size of the stage until the user zooms or pans
  }

  /** @param {number} width of the photo @param {number} height */
  setPhoto(width, height) {
    this.photo = { width, height };
    this.fit();
  }

  /** @param {number} width of the stage @param {number} height */
  setStage(width, height) {
    const [dx, dy] = [(width - this.stage.width) / 2, (height - this.stage.height) / 2];
    this.stage = { width, height };
    if (this.fitted) this.fit();
    else this.#place(this.scale, this.x + dx, this.y + dy);
  }

  /** @returns {number} the scale at which the photo fits */
  get fitScale() {
    const { stage, photo } = this;
    const across = Math.max(1, stage.width - 2 * MARGIN) / photo.width;
    const down = Math.max(1, stage.height - 2 * MARGIN) / photo.height;
    return Math.min(across, down, DEEPEST);
  }

  /** Show all of the photo. */
  fit() {
    const { stage, photo, fitScale } = this;
    this.scale = fitScale;
    this.x = (stage.width - photo.width * fitScale) / 2;
    this.y = (stage.height - photo.height * fitScale) / 2;
    this.fitted = true;
  }

  /**
   * @param {number} factor
   * @param {number} [x] the point of the stage that stays where it is; its centre by default
   * @param {number} [y]
   */
  zoom(factor, x = this.stage.width / 2, y = this.stage.height / 2) {
    const scale = Math.min(DEEPEST, Math.max(this.fitScale / 2, this.scale * factor));
    const ratio = scale / this.scale;
    this.fitted = false;
    this.#place(scale, x - (x - this.x) * ratio, y - (y - this.y) * ratio);
  }

  /** @param {1 | -1} direction */
  zoomStep(direction) {
    this.zoom(STEP ** direction);
  }

  /** @param {number} dx @param {number} dy */
  pan(dx, dy) {
    this.fitted = false;
    this.#place(this.scale, this.x + dx, this.y + dy);
  }

  /**
   * Pan as little as brings a position of the photo onto the stage.
   *
   * @param {number} x
   * @param {number} y
   */
  reveal(x, y) {
    const [sx, sy] = this.toStage(x, y);
    const { width, height } = this.stage;
    const dx = Math.min(0, width - MARGIN - sx) + Math.max(0, MARGIN - sx);
    const dy = Math.min(0, height - MARGIN - sy) + Math.max(0, MARGIN - sy);
    if (dx || dy) this.pan(dx, dy);
  }

  /** @param {number} x @param {number} y @returns {[number, number]} a position of the photo on the stage */
  toStage(x, y) {
    return [x * this.scale + this.x, y * this.scale + this.y];
  }

  /** @param {number} x @param {number} y @returns {[number, number]} a position of the stage on the photo */
  toPhoto(x, y) {
    return [(x - this.x) / this.scale, (y - this.y) / this.scale];
  }

  /** @param {number} scale @param {number} x @param {number} y */
  #place(scale, x, y) {
    const { stage, photo } = this;
    this.scale = scale;
    // Some of the photo always stays on the stage.
    this.x = clamp(x, stage.width * 0.5 - photo.width * scale, stage.width * 0.5);
    this.y = clamp(y, stage.height * 0.5 - photo.height * scale, stage.height * 0.5);
  }
}

/** @param {number} value @param {number} low @param {number} high @returns {number} */
export function clamp(value, low, high) {
  return Math.min(high, Math.max(low, value));
}
