/**
 * @file Types shared by the engine and the page. This module has no code; other modules import the types in JSDoc.
 *
 * Shapes are written as in the Python code: (h w) is row by row, s is the side of the low-resolution masks.
 */

/**
 * An upright photo.
 *
 * @typedef {object} Photo
 * @property {string} name
 * @property {number} width in pixels, upright
 * @property {number} height
 * @property {(y0: number, y1: number) => Uint8ClampedArray} rows RGBA of the rows y0 to y1 (excluded), always opaque:
 *   the pixels that Python's reader gives. Never ask for all rows of a large photo at once.
 * @property {ImageBitmap} bitmap for drawing. It can be smaller than the photo (canvases are limited), so draw it with
 *   a size: drawImage(bitmap, 0, 0, width, height).
 * @property {string[]} notes what the user should know: colours that can differ from Python's, and why
 * @property {() => void} close frees the memory; the photo can't be used afterwards
 */

/**
 * A part of the model as a file.
 *
 * @typedef {object} Part
 * @property {string} file name below model/
 * @property {number} bytes
 * @property {string} sha256 hexadecimal
 */

/**
 * model/model.json.
 *
 * @typedef {object} ModelInfo
 * @property {string} name
 * @property {string} licence
 * @property {string} source
 * @property {number} image_size side of the model's frame
 * @property {number} mask_size s, side of the low-resolution masks
 * @property {number[]} embedding [1, c, g, g]
 * @property {string} score meaning of the scores: "stability" or "iou"
 * @property {Record<string, string>} labels what the labels of points mean
 * @property {{ mean: number[], std: number[] }} image statistics that pixels are normalised with
 * @property {{ encoder: Part, image: Part, decoder: Part }} parts `image`: what the decoder needs of a photo
 * @property {"float32" | "float16" | "int8"} precision of the stored weights
 * @property {{ overlap: number, logits: number }} tolerance least overlap (IoU) of masks, and largest error of logits
 *   (root mean square of the difference over that of the reference) of the start-up check
 * @property {Pick<ModelInfo, "parts" | "precision" | "tolerance">} [half] the files that compute in float16
 */

/**
 * The result of the start-up check.
 *
 * @typedef {object} Check
 * @property {boolean} passed
 * @property {number} worstOverlap smallest IoU of a mask with Python's
 * @property {number} logitsError largest error of a prompt's logits, relative to their root mean square
 * @property {number} prompts number of prompts compared
 * @property {number} ms time of the check
 */

/**
 * @typedef {object} Backend
 * @property {"wasm" | "webgpu"} name
 * @property {number} threads
 * @property {"float32" | "float16" | "int8"} precision of the stored weights
 * @property {boolean} half whether the files are those that compute in float16
 * @property {boolean} isolated whether the page is cross-origin isolated, without which there is one thread
 * @property {Check} check
 * @property {{ name: string, reason: string }[]} rejected backends that were tried before, and why they aren't used
 */

/**
 * A photo that the model has encoded. It stays in the worker's memory until released. Keep the photo open until then:
 * everything mode with crops reads its pixels again.
 *
 * @typedef {object} Embedding
 * @property {number} id
 * @property {number} width of the photo
 * @property {number} height
 * @property {[number, number]} filled rows and columns of the model's frame that the photo fills
 * @property {number} ms time of the encoder, without the preparation of the frame
 * @property {number} frameMs time from the photo to the model's frame
 */

/**
 * Points and a box in pixels of the upright photo.
 *
 * @typedef {object} Prompt
 * @property {[number, number, number][]} points x, y, label; label 1 inside the object, 0 outside
 * @property {[number, number, number, number] | null} box x0, y0, x1, y1
 */

/**
 * @typedef {object} Prediction
 * @property {Float32Array} logits (4 s s); 0 is the single mask, 1 to 3 range from part to whole
 * @property {Float32Array} scores (4)
 * @property {number} ms time of the decoder
 */

/**
 * A mask in the photo's pixels.
 *
 * @typedef {object} Mask
 * @property {number} width
 * @property {number} height
 * @property {Uint32Array} counts COCO's run lengths: column by column, beginning with the background
 * @property {number} area set pixels
 * @property {[number, number, number, number]} box x, y, width, height as COCO: one pixel is 1 wide; zeros if empty
 */

/**
 * Options of everything mode; names, meaning and defaults are those of Python's EverythingGenerator in camel case.
 *
 * @typedef {object} EverythingOptions
 * @property {number} [pointsPerSide] 32
 * @property {number} [scoreThreshold] 0.88 (pred_iou_thresh)
 * @property {number} [stabilityThreshold] 0.95 (stability_score_thresh)
 * @property {number} [stabilityOffset] 1
 * @property {number} [boxNms] 0.7 (box_nms_thresh)
 * @property {number} [cropLayers] 0 (crop_n_layers)
 * @property {number} [cropNms] 0.7
 * @property {number} [cropOverlap] 512 / 1500 (crop_overlap_ratio)
 * @property {number} [cropPointsDownscale] 1 (crop_n_points_downscale_factor)
 * @property {number} [minRegionArea] 0 (min_mask_region_area)
 * @property {boolean} [coarseToFine] false
 * @property {number} [minArea] 0
 * @property {number} [maxMasks] 0
 */

/**
 * A mask of everything mode. `box` is that of Mask (COCO); SAM's `bbox` in Python's records is one pixel less in width
 * and height.
 *
 * @typedef {object} FoundMask
 * @property {Uint32Array} counts
 * @property {[number, number, number, number]} box
 * @property {number} area
 * @property {number} score
 * @property {number} stability
 * @property {[number, number]} point x, y in the photo's pixels
 */

/**
 * What is being loaded. `total` is 0 where it isn't known.
 *
 * @typedef {object} LoadProgress
 * @property {string} what "runtime", "encoder", "image", "decoder" or "check"
 * @property {number} loaded bytes of this part; of the check: prompts
 * @property {number} total
 */

/**
 * A model that runs in a worker. All coordinates are pixels of the upright photo.
 *
 * @typedef {object} Model
 * @property {ModelInfo} info
 * @property {Backend} backend
 * @property {(photo: Photo) => Promise<Embedding>} encode
 * @property {(embedding: Embedding, prompt: Prompt, options?: { maskInput?: Float32Array | null })
 *   => Promise<Prediction>} predict for clicks; never dropped. `maskInput`: logits (s s) of an earlier prediction
 * @property {(embedding: Embedding, prompt: Prompt) => Promise<Prediction | null>} hover for a preview under the
 *   pointer; null if a newer hover request came before this one was started. Clicks go first
 * @property {(embedding: Embedding, options?: EverythingOptions, hooks?: { onProgress?: (progress:
 *   { done: number, total: number, found: number }) => void, signal?: AbortSignal }) => Promise<FoundMask[]>}
 *   everything points done, of all, and masks found so far. Rejects with an AbortError once the signal is aborted
 * @property {(embedding: Embedding, logits: Float32Array, options?: { fillHoles?: number, dropIslands?: number })
 *   => Promise<Mask>} mask the mask of logits (s s) in the photo's pixels. Holes and separate parts with fewer
 *   pixels are filled and dropped
 * @property {(embedding: Embedding) => void} release
 * @property {() => void} close
 */

/**
 * A file of the site.
 *
 * @typedef {object} SiteFile
 * @property {string} path below the site's folder
 * @property {number} bytes
 * @property {string} sha256
 * @property {boolean} [optional] not needed on every machine (WebGPU's runtime): cached when it is first used
 */

/**
 * site.json.
 *
 * @typedef {object} Site
 * @property {string} format "edgesam_jax site/1"
 * @property {string} version a digest of all files
 * @property {string} policy the page's Content Security Policy
 * @property {Record<string, string>} versions of the parts
 * @property {SiteFile[]} files all files but site.json and site.js
 */

export {};
