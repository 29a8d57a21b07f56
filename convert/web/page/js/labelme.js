/**
 * @file labelme's files, one per photo: written with shapes of the kind `mask`, which keep every pixel and holes; read
 * with all shapes that have an area. https://github.com/wkentaro/labelme
 */

import { checkPolygon, FormatError, isRecord } from "./coco.js";
import { windowOf } from "./contours.js";
import { writePng } from "./pngwriter.js";
import { circle, polygonRuns, union } from "./polygons.js";
import { areaOf, boxOf, RunWriter } from "./runs.js";

/** @typedef {import("./coco.js").Labelled} Labelled */
/** @typedef {import("./coco.js").ReadFile} ReadFile */
/** @typedef {import("./coco.js").ReadObject} ReadObject */

const OUTLINES = ["polygon", "rotation", "oriented_rectangle", "quadrilateral"];

/**
 * @param {Labelled} photo
 * @param {string} fallback label of objects without one
 * @returns {Promise<object>} for JSON
 */
export async function toLabelme({ name, width, height, objects }, fallback) {
  const shapes = [];
  for (const { label, counts, box } of objects) {
    const [x, y, boxWidth, boxHeight] = box;
    const { mask } = windowOf(counts, height, box);
    const png = await writePng(boxWidth, boxHeight, 1, (y0, y1) => {
      return mask.subarray(y0 * boxWidth, y1 * boxWidth).map((value) => value * 255);
    });
    const corners = [[x, y], [x + boxWidth - 1, y + boxHeight - 1]]; // prettier-ignore
    const shape = { label: label || fallback, points: corners, group_id: null, description: "", shape_type: "mask" };
    shapes.push({ ...shape, flags: {}, mask: await base64(png) });
  }
  const photo = { imagePath: name, imageData: null, imageHeight: height, imageWidth: width };
  return { version: "5.5.0", flags: {}, shapes, ...photo };
}

/** @param {Blob} blob @returns {Promise<string>} */
function base64(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(String(reader.result).replace(/^[^,]*,/, ""));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

/** @param {unknown} content parsed JSON @returns {boolean} */
export function isLabelme(content) {
  return isRecord(content) && Array.isArray(content.shapes);
}

/**
 * @param {unknown} content for which `isLabelme` is true
 * @param {(name: string) => { width: number, height: number } | null} sizeOf the size of an opened photo, by its name
 * @param {string} file name of the file, whose photo has the same name if the content names none
 * @returns {Promise<ReadFile>}
 * @throws {FormatError}
 */
export async function fromLabelme(content, sizeOf, file) {
  if (!isRecord(content) || !Array.isArray(content.shapes)) throw new FormatError("not in labelme’s format");
  const path = typeof content.imagePath === "string" && content.imagePath ? content.imagePath : file;
  const name = path.replace(/^.*[\\/]/, "");
  const given = { width: Number(content.imageWidth), height: Number(content.imageHeight) };
  const { width, height } = given.width > 0 && given.height > 0 ? given : (sizeOf(name) ?? given);
  if (!Number.isInteger(width) || !Number.isInteger(height) || width < 1 || height < 1) {
    throw new FormatError(`no size of the photo; open ${name} first`);
  }
  /** @type {string[]} */
  const skipped = [];
  /** @type {Map<string, { label: string, parts: Uint32Array[] }>} */
  const groups = new Map();
  for (const [i, shape] of content.shapes.entries()) {
    try {
      if (!isRecord(shape)) throw new FormatError("not an object");
      const counts = await readShape(shape, width, height);
      const label = String(shape.label ?? "");
      const grouped = shape.group_id !== null && shape.group_id !== undefined;
      const key = grouped ? JSON.stringify([label, shape.group_id]) : String(i);
      const group = groups.get(key) ?? { label, parts: [] };
      group.parts.push(counts);
      groups.set(key, group);
    } catch (error) {
      skipped.push(`shapes[${i}]: ${error instanceof Error ? error.message : error}`);
    }
  }
  /** @type {ReadObject[]} */
  const objects = [];
  for (const { label, parts } of groups.values()) {
    const counts = union(parts, width * height);
    const area = areaOf(counts);
    if (area) objects.push({ label, counts, area, box: boxOf(counts, height) });
    else skipped.push(`${label}: no pixel on the photo`);
  }
  return { photos: [{ name, width, height, objects }], skipped };
}

/**
 * @param {Record<string, unknown>} shape
 * @param {number} width of the photo
 * @param {number} height
 * @returns {Promise<Uint32Array>} run lengths
 */
async function readShape(shape, width, height) {
  const kind = shape.shape_type || "polygon";
  const points = /** @type {unknown[]} */ (Array.isArray(shape.points) ? shape.points : []);
  if (!points.length || !points.every((point) => Array.isArray(point) && point.length === 2)) {
    throw new FormatError("its points are not a list of [x, y]");
  }
  let corners = /** @type {[number, number][]} */ (points);
  checkPolygon(corners.flat(), width, height);
  if (kind === "mask") return readMask(shape.mask, corners[0], width, height);
  if (kind === "rectangle" && corners.length === 2) {
    const [[x0, y0], [x1, y1]] = corners;
    corners = [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]; // prettier-ignore
  } else if (kind === "circle" && corners.length === 2) {
    return polygonRuns(circle(corners[0], corners[1]), width, height);
  } else if (kind === "rectangle" ? corners.length !== 4 : !OUTLINES.includes(String(kind))) {
    throw new FormatError(`a shape of type ${String(kind)}, which encloses no area`);
  }
  if (corners.length < 3) throw new FormatError("fewer than three corners");
  return polygonRuns(corners.flat(), width, height);
}

/**
 * @param {unknown} text a PNG in base64
 * @param {[number, number]} corner of its top left pixel
 * @param {number} width of the photo
 * @param {number} height
 * @returns {Promise<Uint32Array>} run lengths
 */
async function readMask(text, [left, top], width, height) {
  if (typeof text !== "string") throw new FormatError("its mask is not the text of a PNG");
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const bitmap = await createImageBitmap(new Blob([bytes], { type: "image/png" }), { colorSpaceConversion: "none" });
  const [x0, y0] = [Math.trunc(left), Math.trunc(top)];
  if (x0 < 0 || y0 < 0 || x0 + bitmap.width > width || y0 + bitmap.height > height) {
    throw new FormatError("its mask extends beyond the photo");
  }
  const canvas = Object.assign(document.createElement("canvas"), { width: bitmap.width, height: bitmap.height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  if (!context) throw new FormatError("no canvas of this size");
  context.drawImage(bitmap, 0, 0);
  const { data } = context.getImageData(0, 0, bitmap.width, bitmap.height);
  const writer = new RunWriter(width * height);
  for (let x = 0; x < bitmap.width; x++) {
    for (let y = 0; y < bitmap.height; y++) {
      const i = 4 * (y * bitmap.width + x);
      const position = (x0 + x) * height + y0 + y;
      if (data[i] || data[i + 1] || data[i + 2]) writer.add(position, position + 1);
    }
  }
  bitmap.close();
  return writer.finish();
}
