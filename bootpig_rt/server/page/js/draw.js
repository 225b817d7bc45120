/** One request for pictures, from its first event to its last. */

import { ApiError, ServerAway, ask, askJson } from "./api.js";
import { eventsOf } from "./events.js";
import { blobOfBase64 } from "./images.js";

/** @typedef {import("./types.js").Progress} Progress */
/**
 * @typedef {object} Drawn
 * @property {Blob} blob
 * @property {import("./types.js").Parameters} parameters
 * @property {Record<string, number>} timings
 * @property {number} reference_passes
 * @property {boolean} isHeldBack
 * @property {string[]} warnings
 */
/**
 * @typedef {{kind: "progress", progress: Progress}
 *   | {kind: "preview", index: number, blob: Blob}
 *   | {kind: "picture", index: number, drawn: Drawn}} DrawEvent
 */

const MOST_PREVIEWS = 25;

/**
 * Draw, with previews. Leaving the loop early, or the signal, cancels.
 *
 * @param {Record<string, unknown>} body as of `POST /v1/images/edits` where it has images, else of
 *   `POST /v1/images/generations`
 * @param {{requestId: string, signal: AbortSignal}} options
 * @returns {AsyncGenerator<DrawEvent>}
 */
export async function* draw(body, { requestId, signal }) {
  const preview_every = Math.ceil(Number(body["num_inference_steps"] ?? 0) / MOST_PREVIEWS) || 1;
  const answer = await ask(routeOf(body), {
    json: { ...body, stream: true, progress: true, preview_every },
    headers: { "X-Request-Id": requestId },
    signal,
  });
  let left = Number(body["n"] ?? 1);
  for await (const { event, data } of eventsOf(answer)) {
    const content = JSON.parse(data);
    const index = content.index ?? 0;
    if (event === "bootpig.progress") {
      yield { kind: "progress", progress: content };
    } else if (event.endsWith(".partial_image")) {
      yield { kind: "preview", index, blob: blobOfBase64(content.b64_json) };
    } else if (event.endsWith(".completed")) {
      left -= 1;
      yield { kind: "picture", index, drawn: drawnOf(content) };
    } else if (event === "error") {
      throw new ApiError(content.error?.status ?? 0, content.error ?? {}, { requestId });
    }
  }
  if (left > 0) throw new ServerAway(); // the stream ended early
}

/**
 * Draw one picture, without previews: the quickest way there is.
 *
 * @param {Record<string, unknown>} body
 * @param {{requestId: string, signal: AbortSignal}} options
 * @returns {Promise<Drawn>}
 */
export async function drawAtOnce(body, { requestId, signal }) {
  const content = await askJson(routeOf(body), {
    json: body,
    headers: { "X-Request-Id": requestId },
    signal,
  });
  return drawnOf({ ...content, ...content.data[0] });
}

/**
 * Tell the server that nobody waits for a request. It stops within a step; one that is done stays done.
 *
 * @param {string} requestId
 */
export async function cancel(requestId) {
  try {
    await ask(`v1/jobs/${requestId}/cancel`, { method: "POST", keepalive: true });
  } catch {
    // It ended meanwhile, or the server is away: either way nothing is being drawn.
  }
}

/** @param {Record<string, unknown>} body */
function routeOf(body) {
  return "images" in body ? "v1/images/edits" : "v1/images/generations";
}

/** @param {any} content @returns {Drawn} */
function drawnOf(content) {
  return {
    blob: blobOfBase64(content.b64_json),
    parameters: content.parameters ?? {},
    timings: content.timings ?? {},
    reference_passes: content.reference_passes ?? 0,
    isHeldBack: content.flagged === true,
    warnings: content.warnings ?? [],
  };
}
