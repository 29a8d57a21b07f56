/**
 * @file COCO's annotation files: written with compressed run lengths, read with polygons and both run-length codes.
 * https://cocodataset.org/#format-data
 */

import { polygonRuns, union } from "./polygons.js";
import { areaOf, boxOf, fromString, toString } from "./runs.js";

/** @typedef {import("./work.js").MaskObject} MaskObject */

/**
 * The objects of a photo.
 *
 * @typedef {object} Labelled
 * @property {string} name of the photo's file
 * @property {number} width
 * @property {number} height
 * @property {readonly MaskObject[]} objects
 */

/**
 * An object read from a file.
 *
 * @typedef {object} ReadObject
 * @property {string} label
 * @property {Uint32Array} counts
 * @property {[number, number, number, number]} box
 * @property {number} area
 */

/**
 * @typedef {object} ReadPhoto
 * @property {string} name
 * @property {number} width
 * @property {number} height
 * @property {ReadObject[]} objects
 */

/** @typedef {{ photos: ReadPhoto[], skipped: string[] }} ReadFile objects, and why others can't be used */

/** A file that can't be read; the message is for the user. */
export class FormatError extends Error {
  /** @param {string} message */
  constructor(message) {
    super(message);
    this.name = "FormatError";
  }
}

/** Category of objects without a label: COCO has no annotations without one. */
export const UNLABELLED = "object";

/**
 * @param {Labelled[]} photos those without objects are listed, too
 * @param {Date} [date]
 * @returns {object} for JSON
 */
export function toCoco(photos, date = new Date()) {
  const labels = photos.flatMap(({ objects }) => objects.map(({ label }) => label || UNLABELLED));
  const names = [...new Set(labels)].sort();
  let id = 0;
  return {
    info: { description: "Annotated with EdgeSAM in the browser", date_created: date.toISOString() },
    licenses: [],
    images: photos.map(({ name, width, height }, i) => ({ id: i + 1, file_name: name, width, height })),
    categories: names.map((name, i) => ({ id: i + 1, name, supercategory: "" })),
    annotations: photos.flatMap(({ width, height, objects }, i) =>
      objects.map(({ label, counts, area, box, prompt }) => {
        const inside = prompt?.points.find((point) => point[2] === 1 && isSet(counts, point[0] * height + point[1]));
        return {
          id: ++id,
          image_id: i + 1,
          category_id: names.indexOf(label || UNLABELLED) + 1,
          segmentation: { size: [height, width], counts: toString(counts) },
          area,
          bbox: box,
          iscrowd: 0,
          ...(inside && { point_coords: [[inside[0], inside[1]]] }),
        };
      }),
    ),
  };
}

/** @param {ArrayLike<number>} counts @param {number} position down the columns @returns {boolean} */
function isSet(counts, position) {
  let at = 0;
  let i = 0;
  while (i < counts.length && at + counts[i] <= position) at += counts[i++];
  return i % 2 === 1;
}

/**
 * @param {unknown} content parsed JSON
 * @returns {boolean}
 */
export function isCoco(content) {
  return isRecord(content) && Array.isArray(content.images) && Array.isArray(content.annotations);
}

/** @param {unknown} value @returns {value is Record<string, unknown>} */
export function isRecord(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** @param {unknown} value @returns {value is number} */
function isSide(value) {
  return Number.isInteger(value) && Number(value) > 0 && Number(value) < 1e5;
}

/**
 * @param {unknown} content for which `isCoco` is true
 * @returns {ReadFile}
 * @throws {FormatError} not a COCO file
 */
export function fromCoco(content) {
  if (!isRecord(content) || !Array.isArray(content.images) || !Array.isArray(content.annotations)) {
    throw new FormatError('not in COCO’s format, which has lists "images" and "annotations"');
  }
  /** @type {string[]} */
  const skipped = [];
  /** @type {Map<unknown, ReadPhoto>} */
  const byId = new Map();
  content.images.forEach((image, i) => {
    const name = isRecord(image) ? (image.file_name ?? String(image.coco_url ?? "").replace(/^.*\//, "")) : "";
    if (!isRecord(image) || typeof name !== "string" || !name || !isSide(image.width) || !isSide(image.height)) {
      skipped.push(`images[${i}]: no file name, or no size`);
    } else {
      byId.set(image.id, { name: name.replace(/^.*[\\/]/, ""), width: image.width, height: image.height, objects: [] });
    }
  });
  const categories = new Map();
  for (const category of Array.isArray(content.categories) ? content.categories : []) {
    if (isRecord(category) && typeof category.name === "string") categories.set(category.id, category.name);
  }
  content.annotations.forEach((annotation, i) => {
    const where = `annotations[${i}]`;
    const photo = isRecord(annotation) ? byId.get(annotation.image_id) : undefined;
    if (!isRecord(annotation) || !photo) return void skipped.push(`${where}: no image has its image_id`);
    if (annotation.iscrowd) return void skipped.push(`${where}: a crowd, which is no single object`);
    try {
      const counts = readSegmentation(annotation.segmentation, photo.width, photo.height);
      const area = areaOf(counts);
      if (!area) throw new FormatError("an empty mask");
      const label = categories.get(annotation.category_id) ?? "";
      photo.objects.push({ label, counts, area, box: boxOf(counts, photo.height) });
    } catch (error) {
      skipped.push(`${where}: ${error instanceof Error ? error.message : error}`);
    }
    return undefined;
  });
  return { photos: [...byId.values()], skipped };
}

/**
 * @param {unknown} segmentation polygons, or run lengths as text or numbers
 * @param {number} width of the photo
 * @param {number} height
 * @returns {Uint32Array} run lengths
 * @throws {FormatError | RangeError}
 */
function readSegmentation(segmentation, width, height) {
  if (Array.isArray(segmentation)) {
    const polygons = segmentation.filter((polygon) => Array.isArray(polygon) && polygon.length >= 6);
    if (!polygons.length) throw new FormatError("no polygon of three or more corners");
    const parts = polygons.map((polygon) => polygonRuns(checkPolygon(polygon, width, height), width, height));
    return union(parts, width * height);
  }
  if (!isRecord(segmentation) || !Array.isArray(segmentation.size)) throw new FormatError("no segmentation");
  const [rows, columns] = segmentation.size;
  if (rows !== height || columns !== width) {
    throw new FormatError(`run lengths of ${columns} x ${rows} pixels for a photo of ${width} x ${height}`);
  }
  const { counts } = segmentation;
  const runs = typeof counts === "string" ? fromString(counts) : Array.isArray(counts) ? counts : null;
  if (!runs || ![...runs].every((run) => Number.isInteger(run) && run >= 0)) throw new FormatError("no run lengths");
  if ([...runs].reduce((sum, run) => sum + run, 0) !== width * height) {
    throw new FormatError("the sum of its run lengths is not the number of pixels");
  }
  return Uint32Array.from(runs);
}

/**
 * @param {unknown[]} polygon
 * @param {number} width
 * @param {number} height
 * @returns {number[]}
 * @throws {FormatError}
 */
export function checkPolygon(polygon, width, height) {
  const far = 4 * Math.max(width, height);
  const numbers = polygon.filter((value) => typeof value === "number" && Math.abs(value) <= far);
  if (numbers.length !== polygon.length || polygon.length % 2) throw new FormatError("a corner is not a position");
  return /** @type {number[]} */ (numbers);
}
