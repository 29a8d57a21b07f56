/** @file What the user takes away: pictures of a mask, the clipboard, downloads, and all annotations in one archive. */

import { toCoco, UNLABELLED } from "./coco.js";
import { outlines, toSvgPath, windowOf } from "./contours.js";
import { toLabelme } from "./labelme.js";
import { writePng } from "./pngwriter.js";
import { writeZip } from "./zip.js";

/** @typedef {import("./types.js").Photo} Photo */
/** @typedef {import("./work.js").PhotoEntry} PhotoEntry */
/** @typedef {Pick<import("./types.js").Mask, "counts" | "box">} Shape */

/**
 * The photo with everything but the mask transparent.
 *
 * @param {Photo} photo
 * @param {Shape} mask not empty
 * @param {boolean} crop to the mask's box
 * @returns {Promise<Blob>} PNG
 */
export function cutOut(photo, mask, crop) {
  const area = windowOf(mask.counts, photo.height, mask.box);
  const [x0, y0, width, height] = crop ? mask.box : [0, 0, photo.width, photo.height];
  return writePng(width, height, 4, (from, to) => {
    const source = photo.rows(y0 + from, y0 + to);
    const out = new Uint8Array((to - from) * width * 4); // transparent pixels are black: the photo isn't in the file
    for (let y = 0; y < to - from; y++) {
      for (let x = 0; x < width; x++) {
        const [mx, my] = [x0 + x - area.x, y0 + from + y - area.y];
        if (mx < 0 || my < 0 || mx >= area.width || my >= area.height || !area.mask[my * area.width + mx]) continue;
        const i = (y * photo.width + x0 + x) * 4;
        const o = (y * width + x) * 4;
        out[o] = source[i];
        out[o + 1] = source[i + 1];
        out[o + 2] = source[i + 2];
        out[o + 3] = 255;
      }
    }
    return out;
  });
}

/**
 * The mask in white on black, as large as the photo.
 *
 * @param {Shape} mask
 * @param {number} width of the photo
 * @param {number} height
 * @returns {Promise<Blob>} PNG, 8-bit grey
 */
export function maskPng(mask, width, height) {
  const area = windowOf(mask.counts, height, mask.box);
  return writePng(width, height, 1, (from, to) => {
    const out = new Uint8Array((to - from) * width);
    for (let y = Math.max(from, area.y); y < Math.min(to, area.y + area.height); y++) {
      for (let x = 0; x < area.width; x++) {
        if (area.mask[(y - area.y) * area.width + x]) out[(y - from) * width + area.x + x] = 255;
      }
    }
    return out;
  });
}

/**
 * The mask's outlines, exact to the pixel; holes by the even-odd rule.
 *
 * @param {Shape} mask
 * @param {number} width of the photo
 * @param {number} height
 * @param {string} title
 * @returns {Blob} SVG
 */
export function maskSvg(mask, width, height, title) {
  const area = windowOf(mask.counts, height, mask.box);
  const path = toSvgPath(outlines(area.mask, area.width, area.height), area.x, area.y);
  const escaped = title.replace(/[&<>]/g, (sign) => `&#${sign.charCodeAt(0)};`);
  const size = `width="${width}" height="${height}" viewBox="0 0 ${width} ${height}"`;
  return new Blob(
    [
      `<svg xmlns="http://www.w3.org/2000/svg" ${size}><title>${escaped}</title>`,
      `<path fill-rule="evenodd" shape-rendering="crispEdges" d="${path}"/></svg>\n`,
    ],
    { type: "image/svg+xml" },
  );
}

/**
 * @param {Promise<Blob>} png
 * @returns {Promise<void>}
 * @throws {Error} the browser has no clipboard for pictures, or the user refused
 */
export async function copyPng(png) {
  if (!navigator.clipboard?.write || typeof ClipboardItem === "undefined") throw new Error("no clipboard");
  // Safari allows it only if the promise is passed while the click is handled.
  await navigator.clipboard.write([new ClipboardItem({ "image/png": png })]);
}

/** @param {Blob} blob @param {string} name */
export function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** @param {object} content @returns {Blob} */
function json(content) {
  return new Blob([JSON.stringify(content)], { type: "application/json" });
}

/** @param {PhotoEntry} photo */
function labelled({ name, width, height, history }) {
  return { name, width, height, objects: history.present.objects };
}

/**
 * The annotations of all photos.
 *
 * @param {PhotoEntry[]} photos
 * @param {"coco" | "labelme"} format
 * @param {boolean} withPhotos
 * @returns {Promise<{ blob: Blob, name: string }>} a JSON file, or an archive if there are several files
 */
export async function annotations(photos, format, withPhotos) {
  const usable = photos.filter(({ width }) => width > 0);
  /** @type {import("./zip.js").Entry[]} */
  const entries = [];
  if (format === "coco") {
    // The names that `edgesam_jax` looks for below `data.root`.
    entries.push({ name: "annotations/instances_photos.json", blob: json(toCoco(usable.map(labelled))) });
  } else {
    for (const photo of usable) {
      const stem = photo.name.replace(/\.[^.]*$/, "");
      if (photo.history.present.objects.length) {
        entries.push({ name: `${stem}.json`, blob: json(await toLabelme(labelled(photo), UNLABELLED)) });
      }
    }
  }
  if (withPhotos) {
    const folder = format === "coco" ? "images/" : "";
    for (const { name, blob } of usable) if (blob) entries.push({ name: folder + name, blob });
  }
  if (entries.length === 1) return { blob: entries[0].blob, name: entries[0].name.replace(/^.*\//, "") };
  return { blob: await writeZip(entries), name: `edgesam_${format}.zip` };
}
