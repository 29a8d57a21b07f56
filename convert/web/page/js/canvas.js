/** @file Draws the stage: the photo, masks with their edges, prompts, preview and crosshair. */

import { css, DRAFT } from "./palette.js";
import { View } from "./view.js";

/**
 * @typedef {object} Layer a mask on the photo
 * @property {Path2D} path in pixels of the photo
 * @property {number[]} colour
 * @property {boolean} strong selected
 */

const PIXELS_FROM = 6; // CSS pixels per photo pixel from which the photo's pixels are shown as squares
const SETTLED = 140; // ms without a change of the view, after which masks are drawn anew

export class Stage {
  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    const context = canvas.getContext("2d");
    if (!context) throw new Error("no 2D canvas");
    this.canvas = canvas;
    this.context = context;
    this.view = new View();
    /** @type {{ bitmap: CanvasImageSource, width: number, height: number } | null} */
    this.photo = null;
    /** @type {Layer[]} */
    this.layers = [];
    /** @type {Path2D | null} */
    this.draft = null;
    /** @type {Path2D | null} */
    this.preview = null;
    /** @type {[number, number, number][]} */
    this.points = [];
    /** @type {[number, number, number, number] | null} */
    this.box = null;
    /** @type {[number, number, number, number] | null} */
    this.rubber = null; // the box being drawn
    /** @type {[number, number] | null} */
    this.crosshair = null; // pixel under the keyboard's crosshair
    this.opacity = 0.5;
    this.frame = 0;
    // Masks of finished objects, as they were drawn last: with many of them, drawing takes longer than a frame.
    this.cache = { canvas: document.createElement("canvas"), x: 0, y: 0, scale: 0, valid: false, timer: 0 };
    new ResizeObserver(() => this.resize()).observe(canvas);
    this.resize();
  }

  /** Follow the size of the element and the screen's resolution. */
  resize() {
    const { clientWidth, clientHeight } = this.canvas;
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = Math.max(1, Math.round(clientWidth * ratio));
    this.canvas.height = Math.max(1, Math.round(clientHeight * ratio));
    this.view.setStage(clientWidth, clientHeight);
    this.cache.valid = false;
    this.draw(); // at once: a resized canvas is empty
  }

  /** @param {{ bitmap: CanvasImageSource, width: number, height: number } | null} photo */
  setPhoto(photo) {
    this.photo = photo;
    this.preview = this.rubber = this.crosshair = null;
    if (photo) this.view.setPhoto(photo.width, photo.height);
    this.invalidate();
  }

  /** @param {Layer[]} layers */
  setLayers(layers) {
    this.layers = layers;
    this.cache.valid = false;
    this.invalidate();
  }

  /** @param {number} opacity 0 to 1 */
  setOpacity(opacity) {
    this.opacity = opacity;
    this.cache.valid = false;
    this.invalidate();
  }

  /** Draw before the next frame. */
  invalidate() {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      this.draw();
    });
  }

  draw() {
    const { context, canvas, photo, view } = this;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (!photo) return;
    this.#toPhoto(context);
    context.imageSmoothingEnabled = view.scale < PIXELS_FROM;
    context.imageSmoothingQuality = "high";
    context.drawImage(photo.bitmap, 0, 0, photo.width, photo.height);
    this.#drawLayers();
    this.#toPhoto(context);
    if (this.preview) this.#mask(context, this.preview, DRAFT, this.draft ? 0 : 0.5, 1.5, [5, 4]);
    if (this.draft) this.#mask(context, this.draft, DRAFT, 1, 2);
    const ratio = window.devicePixelRatio || 1;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    if (this.box) this.#rectangle(this.box, []);
    if (this.rubber) this.#rectangle(this.rubber, [6, 4]);
    for (const point of this.points) this.#point(point);
    if (this.crosshair) this.#cross(this.crosshair);
  }

  /** @param {CanvasRenderingContext2D} context gets the photo's pixels as its unit */
  #toPhoto(context) {
    const ratio = window.devicePixelRatio || 1;
    const { scale, x, y } = this.view;
    context.setTransform(scale * ratio, 0, 0, scale * ratio, x * ratio, y * ratio);
  }

  /** Draw the objects' masks, or while zooming and panning the picture of them. */
  #drawLayers() {
    if (!this.layers.length) return;
    const { cache, view, canvas, context } = this;
    const moved = cache.scale !== view.scale || cache.x !== view.x || cache.y !== view.y;
    const few = this.layers.length <= 12;
    if (!cache.valid || (moved && few)) this.#renderLayers();
    else if (moved) {
      clearTimeout(cache.timer);
      cache.timer = window.setTimeout(() => {
        cache.valid = false;
        this.invalidate();
      }, SETTLED);
    }
    const ratio = window.devicePixelRatio || 1;
    const zoom = view.scale / cache.scale;
    const [x, y] = [view.x - cache.x * zoom, view.y - cache.y * zoom];
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.drawImage(cache.canvas, x * ratio, y * ratio, canvas.width * zoom, canvas.height * zoom);
  }

  #renderLayers() {
    const { cache, view, canvas } = this;
    const context = cache.canvas.getContext("2d");
    if (!context) return;
    cache.canvas.width = canvas.width; // also clears it
    cache.canvas.height = canvas.height;
    this.#toPhoto(context);
    for (const { path, colour, strong } of this.layers) {
      this.#mask(context, path, colour, strong ? 1 : 0.75, strong ? 3 : 1.5);
    }
    Object.assign(cache, { x: view.x, y: view.y, scale: view.scale, valid: true });
  }

  /**
   * Fill a mask, and draw its edge in its colour upon a dark line, so that it shows on every photo.
   *
   * @param {CanvasRenderingContext2D} context with the photo's pixels as its unit
   * @param {Path2D} path
   * @param {number[]} colour
   * @param {number} strength of the filling, times the opacity
   * @param {number} width of the edge in CSS pixels
   * @param {number[]} [dashes]
   */
  #mask(context, path, colour, strength, width, dashes = []) {
    const unit = 1 / this.view.scale;
    context.fillStyle = css(colour, this.opacity * strength);
    context.fill(path, "evenodd");
    context.lineJoin = "round";
    context.setLineDash([]);
    context.lineWidth = (width + 2) * unit;
    context.strokeStyle = "rgb(0 0 0 / 0.55)";
    context.stroke(path);
    context.setLineDash(dashes.map((length) => length * unit));
    context.lineWidth = width * unit;
    context.strokeStyle = css(colour);
    context.stroke(path);
    context.setLineDash([]);
  }

  /** @param {[number, number, number, number]} box in pixels of the photo @param {number[]} dashes */
  #rectangle([x0, y0, x1, y1], dashes) {
    const { context, view } = this;
    const [left, top] = view.toStage(x0, y0);
    const [right, bottom] = view.toStage(x1, y1);
    for (const [width, style] of /** @type {[number, string][]} */ ([
      [4, "rgb(0 0 0 / 0.6)"],
      [2, "#ffffff"],
    ])) {
      context.setLineDash(width === 2 ? dashes : []);
      context.lineWidth = width;
      context.strokeStyle = style;
      context.strokeRect(left, top, right - left, bottom - top);
    }
    context.setLineDash([]);
  }

  /** @param {[number, number, number]} point pixel and label; a plus or a minus tells the label without colour */
  #point([px, py, label]) {
    const { context } = this;
    const [x, y] = this.view.toStage(px + 0.5, py + 0.5);
    context.beginPath();
    context.arc(x, y, 8, 0, 2 * Math.PI);
    context.fillStyle = label ? "#0b7a3b" : "#c2182f";
    context.fill();
    context.lineWidth = 2;
    context.strokeStyle = "#ffffff";
    context.stroke();
    context.beginPath();
    context.moveTo(x - 4, y);
    context.lineTo(x + 4, y);
    if (label) {
      context.moveTo(x, y - 4);
      context.lineTo(x, y + 4);
    }
    context.stroke();
  }

  /** @param {[number, number]} pixel */
  #cross([px, py]) {
    const { context, view } = this;
    const [x, y] = view.toStage(px + 0.5, py + 0.5);
    const { width, height } = view.stage;
    for (const [line, style] of /** @type {[number, string][]} */ ([
      [3, "rgb(0 0 0 / 0.7)"],
      [1, "#ffffff"],
    ])) {
      context.lineWidth = line;
      context.strokeStyle = style;
      context.beginPath();
      context.moveTo(0, y);
      context.lineTo(x - 6, y);
      context.moveTo(x + 6, y);
      context.lineTo(width, y);
      context.moveTo(x, 0);
      context.lineTo(x, y - 6);
      context.moveTo(x, y + 6);
      context.lineTo(x, height);
      context.stroke();
    }
  }
}
