/** @file A file or blob as an upright photo, whose pixels are read in bands of rows. */

/** @typedef {import("./types.js").Photo} Photo */

/** An error with a message for the user. */
export class PhotoError extends Error {
  /** @param {string} message */
  constructor(message) {
    super(message);
    this.name = "PhotoError";
  }
}

/**
 * Open a photo.
 *
 * @param {Blob} blob
 * @param {string} name of the file, for messages
 * @returns {Promise<Photo>}
 * @throws {PhotoError} the file is broken or of an unknown kind
 */
export async function openPhoto(blob, name) {
  throw new PhotoError(`${name}: ${blob.size} bytes`);
}
