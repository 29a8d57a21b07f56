/** @file Undo and redo over immutable states. */

/** @template T */
export class History {
  /**
   * @param {T} first
   * @param {number} [limit] states that are kept
   */
  constructor(first, limit = 200) {
    /** @type {T[]} */
    this.states = [first];
    this.at = 0;
    this.limit = limit;
  }

  /** @returns {T} */
  get present() {
    return this.states[this.at];
  }

  /** @returns {boolean} */
  get canUndo() {
    return this.at > 0;
  }

  /** @returns {boolean} */
  get canRedo() {
    return this.at < this.states.length - 1;
  }

  /**
   * Add a state after the present one; states that were undone are forgotten.
   *
   * @param {T} state
   */
  push(state) {
    this.states.length = this.at + 1;
    this.states.push(state);
    if (this.states.length > this.limit) this.states.shift();
    this.at = this.states.length - 1;
  }

  /**
   * Change the present state without a step to undo.
   *
   * @param {T} state
   */
  replace(state) {
    this.states[this.at] = state;
  }

  /** @returns {boolean} whether there was something to undo */
  undo() {
    if (!this.canUndo) return false;
    this.at--;
    return true;
  }

  /** @returns {boolean} whether there was something to redo */
  redo() {
    if (!this.canRedo) return false;
    this.at++;
    return true;
  }
}
