/** @file The order of predictions. */

/** @typedef {import("./channel.js").Channel} Channel */

/**
 * One prediction at a time: clicks in their order, then the newest hover request.
 *
 * @param {Channel} channel
 */
export function predictions(channel) {
  let busy = false;
  /** @typedef {{ data: object, resolve: (value: any) => void, reject: (error: unknown) => void }} Job */
  /** @type {Job[]} */
  const clicks = [];
  /** @type {Job | null} */
  let latest = null;
  const advance = async () => {
    if (busy) return;
    const job = clicks.shift() ?? latest;
    if (job === latest) latest = null;
    if (!job) return;
    busy = true;
    await channel.call("predict", job.data).then(job.resolve, job.reject);
    busy = false;
    void advance();
  };
  return {
    /** @param {object} data @returns {Promise<import("./types.js").Prediction>} */
    click: (data) =>
      new Promise((resolve, reject) => {
        clicks.push({ data, resolve, reject });
        void advance();
      }),
    /** @param {object} data @returns {Promise<import("./types.js").Prediction | null>} */
    hover: (data) =>
      new Promise((resolve, reject) => {
        latest?.resolve(null);
        latest = { data, resolve, reject };
        void advance();
      }),
  };
}
