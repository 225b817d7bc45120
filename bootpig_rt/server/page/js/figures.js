/** What the server is doing now, from its metrics, in a line. Where they are not to be had, nothing. */

import { ask } from "./api.js";
import { milliseconds } from "./words.js";

const EVERY_S = 4;
const WINDOW_S = 60;

/**
 * @typedef {object} Sample
 * @property {string} name
 * @property {Record<string, string>} labels
 * @property {number} value
 */
/**
 * @typedef {object} Reading
 * @property {number} at_s
 * @property {number} pictures done since the server began
 * @property {number} waiting
 * @property {Map<number, number>} buckets cumulative, by upper bound in seconds
 */

/**
 * Prometheus' text format.
 *
 * @param {string} text
 * @returns {Sample[]}
 */
export function parseMetrics(text) {
  const samples = [];
  for (const line of text.split("\n")) {
    const found = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/.exec(line);
    if (!found) continue;
    const [, name = "", inside = "", value = ""] = found;
    const pairs = [...inside.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(([, key, text]) => [key, text]);
    samples.push({ name, labels: Object.fromEntries(pairs), value: value === "+Inf" ? Infinity : Number(value) });
  }
  return samples;
}

/**
 * @param {Sample[]} samples
 * @param {number} at_s
 * @returns {Reading}
 */
export function readingOf(samples, at_s) {
  const sum = (/** @type {(one: Sample) => boolean} */ of) =>
    samples.filter(of).reduce((total, one) => total + one.value, 0);
  const buckets = new Map();
  for (const { name, labels, value } of samples) {
    const isDrawing = labels["route"]?.startsWith("/v1/images/");
    if (name !== "bootpig_http_request_duration_seconds_bucket" || !isDrawing) continue;
    const bound = labels["le"] === "+Inf" ? Infinity : Number(labels["le"]);
    buckets.set(bound, (buckets.get(bound) ?? 0) + value);
  }
  return {
    at_s,
    pictures: sum(({ name, labels }) => name === "bootpig_pictures_total" && labels["outcome"] === "succeeded"),
    waiting: sum(({ name }) => name === "bootpig_queue_pictures"),
    buckets,
  };
}

/**
 * A quantile of what was counted between two readings, in seconds; between bounds it is a guess.
 *
 * @param {Reading} before
 * @param {Reading} after
 * @param {number} share 0 to 1
 * @returns {number | null} null where nothing was counted
 */
export function quantile(before, after, share) {
  const bounds = [...after.buckets.keys()].sort((one, other) => one - other);
  const counts = bounds.map((bound) => (after.buckets.get(bound) ?? 0) - (before.buckets.get(bound) ?? 0));
  const total = counts.at(-1) ?? 0;
  if (total <= 0) return null;
  const at = counts.findIndex((count) => count >= share * total);
  const low = at > 0 ? (bounds[at - 1] ?? 0) : 0;
  const high = bounds[at] ?? low;
  if (high === Infinity) return low;
  const below = at > 0 ? (counts[at - 1] ?? 0) : 0;
  return low + ((high - low) * (share * total - below)) / ((counts[at] ?? total) - below);
}

/**
 * @param {Reading} before
 * @param {Reading} after
 */
export function figuresInWords(before, after) {
  const passed_s = after.at_s - before.at_s;
  const rate = passed_s > 0 ? (after.pictures - before.pictures) / passed_s : 0;
  const half = quantile(before, after, 0.5);
  const most = quantile(before, after, 0.99);
  return [
    after.waiting ? `${after.waiting} waiting` : "nobody waits",
    rate > 0 ? `${rate.toFixed(rate < 10 ? 1 : 0)} pictures/s` : "",
    half !== null ? `p50 ${milliseconds(1000 * half)}` : "",
    most !== null ? `p99 ${milliseconds(1000 * most)}` : "",
  ].filter(Boolean).join(" · ");
}

/**
 * Look every few seconds while somebody looks at the page.
 *
 * @param {HTMLElement} node
 * @param {() => boolean} isReady
 */
export function mountFigures(node, isReady) {
  /** @type {Reading[]} */
  let readings = [];
  let isRefused = false;
  const look = async () => {
    if (document.hidden || isRefused) return;
    if (!isReady()) {
      readings = [];
      node.textContent = "";
      return;
    }
    try {
      const text = await (await ask("metrics")).text();
      const now_s = performance.now() / 1000;
      readings = [...readings.filter(({ at_s }) => now_s - at_s < WINDOW_S), readingOf(parseMetrics(text), now_s)];
      const [first] = readings;
      const last = readings.at(-1);
      if (first && last) node.textContent = figuresInWords(first, last);
    } catch (error) {
      isRefused = error instanceof Error && "status" in error; // not for this key
      node.textContent = "";
    }
  };
  setInterval(look, 1000 * EVERY_S);
  return look;
}
