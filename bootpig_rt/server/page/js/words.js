/** Numbers and refusals in words, each with what to do next. */

import { ApiError, ServerAway } from "./api.js";

/**
 * @typedef {object} Explanation
 * @property {string} title what happened
 * @property {string} text what to do
 * @property {string | null} param the field that it is about
 * @property {number | null} retryIn_s when trying again makes sense
 * @property {string | null} requestId
 */

/** @type {Record<string, [title: string, text: string]>} by the error's code */
const BY_CODE = {
  queue_full: ["The server is busy", "Too many pictures are waiting. Yours took no place yet."],
  quota_exceeded: ["You have used your share", "Others come first for a while. Try again later."],
  not_ready: ["The server is starting", "It will be ready in a moment."],
  draining: ["The server is closing", "It finishes what it has begun and takes nothing new."],
  subject_mismatch: [
    "This model cannot read the subject",
    "It came as a file of another model. Choose that model, or add the subject's pictures.",
  ],
  subject_quota: ["There is no room for another subject", "Delete some from the library."],
  model_not_found: ["The server has no such model", "Choose another one in the settings."],
  content_policy: ["The server does not draw this", "Its rules forbid what the prompt asks for."],
  safety_unavailable: ["The picture could not be judged", "So it is not given out. Try again later."],
  storage_error: ["The server cannot use its storage", "Try again later."],
  too_many_uploads: ["Too many are sending pictures", "Try again in a moment."],
  out_of_memory: ["There was not enough memory", "Ask for fewer pictures or fewer references."],
  deadline_exceeded: [
    "It was not done in time",
    "The picture was stopped. Ask for fewer steps, or try again when fewer wait.",
  ],
  numerical_error: ["The model lost its way", "Try lower guidance or another seed."],
  body_too_large: ["The pictures are too large", "Make them smaller, or use fewer."],
  body_timeout: ["Sending took too long", "The connection may be slow. Try smaller pictures."],
  invalid_api_key: ["The server wants a key", "Enter the key that you were given."],
  bad_origin: ["The server refused this page", "Open the page at the server's own address."],
  invalid_value: ["The server cannot draw this", ""],
  missing_field: ["Something is missing", ""],
  forbidden: ["This key may not do that", "Ask whoever runs the server."],
  not_found: ["It is not there any more", "Its time ran out, or it was deleted."],
  unsupported_media_type: ["The server cannot read this file", "Use a PNG, JPEG or WebP picture."],
  internal_error: [
    "Something failed on the server",
    "It was noted there. Try again, or tell whoever runs it.",
  ],
  bad_host: ["The server refused this address", "Open the page at the server's own address."],
};

/** @type {Record<number, string>} the code that stands for a status, where the code is not known */
const CODE_OF_STATUS = {
  400: "invalid_value",
  401: "invalid_api_key",
  403: "forbidden",
  404: "not_found",
  408: "body_timeout",
  413: "body_too_large",
  415: "unsupported_media_type",
  422: "missing_field",
  429: "queue_full",
  500: "internal_error",
  503: "not_ready",
  504: "deadline_exceeded",
};

/**
 * An error as a person would say it.
 *
 * @param {unknown} error
 * @returns {Explanation}
 */
export function explain(error) {
  const none = { param: null, retryIn_s: null, requestId: null };
  if (error instanceof ServerAway) {
    return { ...none, title: "The server is away", text: "What you typed is kept. Try again when it is back." };
  }
  if (!(error instanceof ApiError)) {
    return { ...none, title: "The page failed", text: error instanceof Error ? error.message : String(error) };
  }
  const known = BY_CODE[error.code] ?? BY_CODE[CODE_OF_STATUS[error.status] ?? ""];
  const [title, text] = known ?? ["The server refused", ""];
  // A message about a value names the value and what is allowed: nothing here could say it better.
  const isAboutValue = error.status === 400 || error.status === 422 || text === "";
  const said = isAboutValue ? sentence(error.message) : text;
  return {
    title,
    text: said,
    param: error.param,
    retryIn_s: error.status === 429 ? Math.max(error.retryAfter_s ?? 1, 0.2) : null,
    requestId: error.requestId,
  };
}

/** A message of the server as a sentence. @param {string} text */
export function sentence(text) {
  const isName = /^\w+_\w/.test(text); // of a field, which stays as it is
  const upper = isName ? text : text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(upper) ? upper : `${upper}.`;
}

/**
 * Where a picture is on its way.
 *
 * @param {import("./types.js").Progress} progress
 * @param {number | null} left_s
 */
export function progressInWords({ stage, done, total, position, expected_wait_s }, left_s) {
  if (stage === "queued") {
    const wait = expected_wait_s ? `, about ${seconds(expected_wait_s)}` : "";
    if (!position) return `Next in line${wait}`;
    return `Waiting: ${position} ahead of you${wait}`;
  }
  const left = left_s === null ? "" : `, ${seconds(left_s)} left`;
  if (stage === "reference") return `Reading the reference, ${done} of ${total}${left}`;
  return `Drawing, step ${done} of ${total}${left}`;
}

/** @param {number} value */
export function seconds(value) {
  if (value < 0.95) return `${Math.max(value, 0.1).toFixed(1)} s`;
  if (value < 90) return `${Math.round(value)} s`;
  return `${Math.round(value / 60)} min`;
}

/** @param {number} value */
export function milliseconds(value) {
  return value < 1000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(value < 10_000 ? 2 : 1)} s`;
}

/** @param {number} value */
export function bytes(value) {
  if (value < 1000) return `${value} B`;
  if (value < 1e6) return `${Math.round(value / 1000)} kB`;
  return `${(value / 1e6).toFixed(1)} MB`;
}

/**
 * @param {number} count
 * @param {string} one
 * @param {string} [many]
 */
export function plural(count, one, many = `${one}s`) {
  return `${count} ${count === 1 ? one : many}`;
}

/**
 * How long it is until then.
 *
 * @param {number} at_s seconds since 1970
 */
export function until(at_s) {
  const left = at_s - Date.now() / 1000;
  if (left <= 0) return "gone soon";
  if (left < 3600) return `${Math.ceil(left / 60)} min left`;
  if (left < 48 * 3600) return `${Math.round(left / 3600)} h left`;
  return `${Math.round(left / 86400)} days left`;
}

/**
 * What reading the reference took, or saved.
 *
 * @param {Pick<import("./types.js").Picture, "parameters" | "reference_passes" | "saved">} picture
 */
export function passesInWords({ parameters, reference_passes: passes, saved }) {
  if (!Number(parameters["num_references"])) return "no reference";
  if (passes) return plural(passes, "reference pass", "reference passes");
  if (!saved) return "no reference pass";
  const took = saved.ms >= 1 ? ` and ${milliseconds(saved.ms)}` : "";
  return `no reference pass: ${saved.passes}${took} saved`;
}
