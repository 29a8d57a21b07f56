/** @file Annotations from files: COCO's and labelme's, onto photos that are open or will be opened. */

import { fromCoco, FormatError, isCoco, UNLABELLED } from "./coco.js";
import { fromLabelme, isLabelme } from "./labelme.js";
import { newId } from "./work.js";

/** @typedef {import("./work.js").Work} Work */
/** @typedef {import("./work.js").PhotoEntry} PhotoEntry */
/** @typedef {import("./work.js").MaskObject} MaskObject */

/**
 * @typedef {object} Imported
 * @property {PhotoEntry[]} added entries for photos that aren't open
 * @property {number} objects that were added
 * @property {number} known objects that were there already
 * @property {number} missing photos that must be opened
 * @property {string[]} skipped reasons
 */

/**
 * @param {File} file
 * @param {Work} work
 * @returns {Promise<Imported>}
 * @throws {FormatError} with a message for the user
 */
export async function importAnnotations(file, work) {
  let content;
  try {
    content = JSON.parse((await file.text()).replace(/^\ufeff/, ""));
  } catch {
    throw new FormatError(`${file.name}: not valid JSON`);
  }
  /** @param {string} name */
  const find = (name) => work.photos.find((photo) => photo.name === name) ?? null;
  /** @param {string} name */
  const sizeOf = (name) => {
    const photo = find(name);
    return photo?.width ? photo : null;
  };
  let read;
  if (isCoco(content)) read = fromCoco(content);
  else if (isLabelme(content)) read = await fromLabelme(content, sizeOf, file.name);
  else throw new FormatError(`${file.name}: neither COCO’s format nor labelme’s`);
  /** @type {Imported} */
  const result = { added: [], objects: 0, known: 0, missing: 0, skipped: read.skipped };
  for (const { name, width, height, objects } of read.photos) {
    let photo = find(name);
    if (photo && (photo.width !== width || photo.height !== height)) {
      result.skipped.push(
        `${name}: ${photo.width} x ${photo.height} pixels here, but ${width} x ${height} in ${file.name}`,
      );
      continue;
    }
    if (!photo) {
      if (!objects.length) continue;
      photo = work.add({ id: newId(), name, origin: "file", blob: null, width, height, thumbnail: "" });
      result.added.push(photo);
    }
    if (!photo.blob) result.missing++;
    const { objects: before } = photo.history.present;
    const known = new Set(before.map(keyOf));
    let colour = work.nextColour(photo);
    /** @type {MaskObject[]} */
    const fresh = [];
    for (const object of objects) {
      if (known.has(keyOf(object))) result.known++;
      else fresh.push({ ...object, id: newId(), colour: colour++, hidden: false, score: null, prompt: null });
    }
    result.objects += fresh.length;
    if (fresh.length) work.commit({ objects: [...before, ...fresh] }, { photo });
  }
  return result;
}

/** @param {{ label: string, counts: Uint32Array }} object @returns {string} equal for equal masks with equal labels */
function keyOf({ label, counts }) {
  return `${label || UNLABELLED}\n${counts.join()}`;
}
