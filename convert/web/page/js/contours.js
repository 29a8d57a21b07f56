/**
 * @file The outlines of a mask along the borders of its pixels. Filled by the even-odd rule they give the mask exactly,
 * holes included; the screen and the SVG file draw the same outlines.
 */

const EAST = 0;
const STEP_X = [1, 0, -1, 0]; // east, south, west, north
const STEP_Y = [0, 1, 0, -1];

/**
 * A closed outline: x, y, x, y, ... of its corners; the last one joins the first. Sides are horizontal and vertical in
 * turn, the first one horizontal.
 *
 * @typedef {number[]} Ring
 */

/**
 * A part of a mask, possibly every `step`th pixel only.
 *
 * @typedef {object} Window
 * @property {Uint8Array} mask (height width) 0 or 1
 * @property {number} width
 * @property {number} height
 * @property {number} x of its left edge on the photo
 * @property {number} y
 * @property {number} step pixels of the photo per pixel of the window
 */

/**
 * Follow all outlines of a mask. Pixels that touch at a corner only are separate.
 *
 * @param {Uint8Array} mask (h w) 0 or 1
 * @param {number} width
 * @param {number} height
 * @returns {Ring[]}
 */
export function outlines(mask, width, height) {
  const seen = new Uint8Array(mask.length); // pixels whose upper border was followed
  /** @param {number} x @param {number} y */
  const at = (x, y) => (x >= 0 && y >= 0 && x < width && y < height ? mask[y * width + x] : 0);
  const rings = [];
  for (let i = 0; i < mask.length; i++) {
    if (!mask[i] || seen[i] || (i >= width && mask[i - width])) continue;
    const [startX, startY] = [i % width, Math.floor(i / width)];
    /** @type {Ring} */
    const ring = [startX, startY];
    let [x, y, way] = [startX, startY, EAST];
    do {
      // The mask is on the right of the way.
      if (way === EAST) seen[y * width + x] = 1;
      x += STEP_X[way];
      y += STEP_Y[way];
      const right = at(x - (way === 1 || way === 2 ? 1 : 0), y - (way === 2 || way === 3 ? 1 : 0));
      const left = at(x - (way === 2 || way === 3 ? 1 : 0), y - (way === 0 || way === 3 ? 1 : 0));
      const turn = !right ? 1 : left ? 3 : 0;
      if (turn) {
        ring.push(x, y);
        way = (way + turn) % 4;
      }
    } while (x !== startX || y !== startY || way !== EAST);
    // The way ends where it began, after a turn, so that corner is in the list twice; unless the start wasn't a corner.
    const end = ring.length - 2;
    if (ring[end] === startX && ring[end + 1] === startY) ring.length = end;
    rings.push(ring);
  }
  return rings;
}

/**
 * The part of a run-length code within a box.
 *
 * @param {ArrayLike<number>} counts column by column, beginning with the background
 * @param {number} height of the photo
 * @param {[number, number, number, number]} box x, y, width, height that holds all set pixels
 * @param {number} [step]
 * @returns {Window}
 */
export function windowOf(counts, height, [x0, y0, boxWidth, boxHeight], step = 1) {
  const left = Math.floor(x0 / step) * step;
  const top = Math.floor(y0 / step) * step;
  const width = Math.ceil((x0 + boxWidth - left) / step);
  const rows = Math.ceil((y0 + boxHeight - top) / step);
  const mask = new Uint8Array(width * rows);
  const middle = step >> 1; // a pixel of the window is the middle one of its square
  let at = 0;
  for (let i = 0; i < counts.length; at += counts[i++]) {
    if (i % 2 === 0 || !counts[i]) continue;
    const last = at + counts[i] - 1;
    for (let x = Math.floor(at / height); x <= Math.floor(last / height); x++) {
      const column = x - left - middle;
      if (column < 0 || column % step || column / step >= width) continue;
      const from = Math.max(at - x * height, 0) - top - middle;
      const to = Math.min(last - x * height, height - 1) - top - middle;
      for (let y = Math.max(0, Math.ceil(from / step)); y <= Math.min(rows - 1, Math.floor(to / step)); y++) {
        mask[y * width + column / step] = 1;
      }
    }
  }
  return { mask, width, height: rows, x: left, y: top, step };
}

/**
 * @param {Ring[]} rings
 * @param {number} [scaleX]
 * @param {number} [scaleY]
 * @param {number} [x] of the origin
 * @param {number} [y]
 * @returns {Path2D}
 */
export function toPath(rings, scaleX = 1, scaleY = 1, x = 0, y = 0) {
  const path = new Path2D();
  for (const ring of rings) {
    path.moveTo(ring[0] * scaleX + x, ring[1] * scaleY + y);
    for (let i = 2; i < ring.length; i += 2) path.lineTo(ring[i] * scaleX + x, ring[i + 1] * scaleY + y);
    path.closePath();
  }
  return path;
}

/**
 * The outlines of a mask of the photo, for the screen: of large masks only every second or third pixel counts.
 *
 * @param {{ counts: ArrayLike<number>, box: [number, number, number, number] }} mask
 * @param {number} height of the photo
 * @param {number} [longest] largest number of pixels along a side
 * @returns {Path2D} in pixels of the photo
 */
export function pathOf({ counts, box }, height, longest = 2048) {
  if (!box[2] || !box[3]) return new Path2D();
  const part = windowOf(counts, height, box, Math.max(1, Math.ceil(Math.max(box[2], box[3]) / longest)));
  return toPath(outlines(part.mask, part.width, part.height), part.step, part.step, part.x, part.y);
}

/**
 * The commands of an SVG path, for `fill-rule="evenodd"`.
 *
 * @param {Ring[]} rings
 * @param {number} [x] of the origin
 * @param {number} [y]
 * @returns {string}
 */
export function toSvgPath(rings, x = 0, y = 0) {
  return rings
    .map((ring) => {
      let text = `M${ring[0] + x} ${ring[1] + y}`;
      for (let i = 2; i < ring.length; i += 2) {
        text += ring[i] !== ring[i - 2] ? `H${ring[i] + x}` : `V${ring[i + 1] + y}`;
      }
      return `${text}Z`;
    })
    .join("");
}
