/** @file Colours of masks. Neighbours in the list differ in lightness, too, for people who confuse hues. */

const COLOURS = [
  [230, 159, 0], [86, 180, 233], [213, 94, 0], [0, 158, 115], [240, 228, 66],
  [204, 121, 167], [0, 114, 178], [170, 220, 120], [150, 110, 230], [255, 150, 140],
]; // prettier-ignore

/** Of the prompt in progress. */
export const DRAFT = [64, 140, 255];

/**
 * @param {number} index
 * @returns {number[]} red, green, blue
 */
export function colour(index) {
  return COLOURS[index % COLOURS.length];
}

/**
 * @param {number[]} rgb
 * @param {number} [alpha]
 * @returns {string} for CSS and canvases
 */
export function css([r, g, b], alpha = 1) {
  return `rgb(${r} ${g} ${b} / ${alpha})`;
}
