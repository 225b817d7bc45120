/** Live mode: the picture follows what is typed. The latest wish wins. */

import { isAbort, newRequestId } from "./api.js";
import { cancel, drawAtOnce } from "./draw.js";

/** @typedef {import("./draw.js").Drawn} Drawn */

/** A stale picture may end if none was shown for so long: who types fast sees pictures, too. */
const LONGEST_GAP_MS = 350;
/** Nor is one let go that ends about as soon as a key is typed: it would only make them fewer. */
const QUICK_MS = 250;
const PICTURES_MEASURED = 12;

/**
 * One wish at a time is drawn, and one more is kept: the latest. A wish that comes while another is
 * drawn cancels it, unless pictures are quick or nothing was shown for a while.
 *
 * @template W
 */
export class Live {
  /** @type {W | null} */
  #next = null;
  /** @type {{controller: AbortController, requestId: string} | null} */
  #running = null;
  #shownAt = 0;
  /** @type {number[]} */
  #took_ms = [];

  #bodyOf;
  #onPicture;
  #onFailure;

  /**
   * @param {object} handlers
   * @param {(wish: W, signal: AbortSignal) => Promise<Record<string, unknown>>} handlers.bodyOf
   * @param {(drawn: Drawn, wish: W, took_ms: number) => void} handlers.onPicture
   * @param {(error: unknown, wish: W) => void} handlers.onFailure
   */
  constructor({ bodyOf, onPicture, onFailure }) {
    this.#bodyOf = bodyOf;
    this.#onPicture = onPicture;
    this.#onFailure = onFailure;
  }

  /** @param {W} wish */
  wish(wish) {
    this.#next = wish;
    if (!this.#running) this.#run();
    else if (!this.#isQuick && performance.now() - this.#shownAt < LONGEST_GAP_MS) this.#cancel();
  }

  /** Let go of everything. */
  stop() {
    this.#next = null;
    this.#took_ms = [];
    this.#cancel();
  }

  /** Pictures a second, by the last ones; null while there are too few. */
  get picturesPerSecond() {
    if (this.#took_ms.length < 2) return null;
    return (1000 * this.#took_ms.length) / this.#took_ms.reduce((sum, one) => sum + one, 0);
  }

  /** Of the last picture, null before the first. */
  get lastTook_ms() {
    return this.#took_ms.at(-1) ?? null;
  }

  get #isQuick() {
    return (this.lastTook_ms ?? Infinity) < QUICK_MS;
  }

  #cancel() {
    if (!this.#running || this.#running.controller.signal.aborted) return;
    cancel(this.#running.requestId);
    this.#running.controller.abort();
  }

  async #run() {
    while (this.#next !== null) {
      const wish = this.#next;
      this.#next = null;
      const running = { controller: new AbortController(), requestId: newRequestId() };
      this.#running = running;
      const { signal } = running.controller;
      try {
        const body = await this.#bodyOf(wish, signal);
        const start = performance.now();
        const drawn = await drawAtOnce(body, { requestId: running.requestId, signal });
        const now = performance.now();
        this.#took_ms = [...this.#took_ms, now - start].slice(-PICTURES_MEASURED);
        this.#shownAt = now;
        this.#onPicture(drawn, wish, now - start);
      } catch (error) {
        if (!isAbort(error)) this.#onFailure(error, wish);
      }
    }
    this.#running = null;
  }
}
