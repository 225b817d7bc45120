/** What a screen reader is told: a calm line for progress, and at once for what went wrong. */

import { byId } from "./dom.js";

const CALM_MS = 1500;

let last = 0;

/**
 * Say something when there is a pause. Of what comes quickly most is dropped, unless it is final.
 *
 * @param {string} text
 * @param {{isFinal?: boolean}} [options]
 */
export function announce(text, { isFinal = true } = {}) {
  const now = performance.now();
  if (!isFinal && now - last < CALM_MS) return;
  last = now;
  byId("announcement", HTMLElement).textContent = text;
}
