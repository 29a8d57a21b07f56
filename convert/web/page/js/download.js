/** @file Loads files with progress, and says what is wrong with one that can't be used. */

/** A file that is missing or damaged; the message is for the user. */
export class FileError extends Error {
  /** @param {string} message */
  constructor(message) {
    super(message);
    this.name = "FileError";
  }
}

const AGAIN = "copy the whole folder of the site again";

/**
 * Load a file.
 *
 * @param {string} base URL of the site
 * @param {string} path below it
 * @param {{ bytes?: number, sha256?: string, onProgress?: (loaded: number, total: number) => void }} [expected]
 * @returns {Promise<Uint8Array<ArrayBuffer>>}
 * @throws {FileError} missing, of another size or with another checksum
 */
export async function download(base, path, { bytes = 0, sha256 = "", onProgress = () => {} } = {}) {
  let response;
  try {
    response = await fetch(new URL(path, base));
  } catch {
    throw new FileError(`${path}: can't be loaded; check the connection, then reload the page`);
  }
  if (!response.ok) throw new FileError(`${path}: missing on the server (status ${response.status}); ${AGAIN}`);
  const total = bytes || Number(response.headers.get("Content-Length") ?? 0);
  const parts = [];
  let loaded = 0;
  onProgress(0, total);
  try {
    if (response.body) {
      const reader = response.body.getReader();
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        parts.push(value);
        loaded += value.length;
        onProgress(loaded, Math.max(total, loaded));
      }
    }
  } catch {
    throw new FileError(`${path}: the connection broke after ${loaded} bytes; reload the page`);
  }
  const content = new Uint8Array(loaded);
  let at = 0;
  for (const part of parts) {
    content.set(part, at);
    at += part.length;
  }
  if (bytes && loaded !== bytes) throw new FileError(`${path}: damaged (${loaded} bytes, not ${bytes}); ${AGAIN}`);
  if (sha256 && crypto.subtle && (await digest(content)) !== sha256) {
    throw new FileError(`${path}: damaged (its checksum is another); ${AGAIN}`);
  }
  return content;
}

/**
 * Load a JSON file.
 *
 * @param {string} base
 * @param {string} path
 * @returns {Promise<any>}
 * @throws {FileError}
 */
export async function downloadJson(base, path) {
  const content = await download(base, path);
  try {
    return JSON.parse(new TextDecoder().decode(content));
  } catch {
    throw new FileError(`${path}: damaged (not JSON); ${AGAIN}`);
  }
}

/** @param {Uint8Array<ArrayBuffer>} content @returns {Promise<string>} SHA-256 in hexadecimal */
async function digest(content) {
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", content));
  return Array.from(hash, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
