/** The server's HTTP interface: one place that knows paths, the key, and what an error looks like. */

/** An answer that says no. */
export class ApiError extends Error {
  /**
   * @param {number} status
   * @param {{message?: string, code?: string | null, param?: string | null}} error
   * @param {{retryAfter_s?: number | null, requestId?: string | null}} [about]
   */
  constructor(status, error, { retryAfter_s = null, requestId = null } = {}) {
    super(error.message ?? `the server answered ${status}`);
    this.name = "ApiError";
    this.status = status;
    this.code = error.code ?? "";
    this.param = error.param ?? null;
    this.retryAfter_s = retryAfter_s;
    this.requestId = requestId;
  }
}

/** No answer at all. */
export class ServerAway extends Error {
  constructor() {
    super("the server does not answer");
    this.name = "ServerAway";
  }
}

const KEY_NAME = "bootpig.key";

/** The API key of this tab; gone when the tab is closed. */
export const key = {
  get: () => sessionStorage.getItem(KEY_NAME) ?? "",
  /** @param {string} value */
  set: (value) => sessionStorage.setItem(KEY_NAME, value),
  forget: () => sessionStorage.removeItem(KEY_NAME),
};

/**
 * The full address of a path, also where the page lies below a prefix.
 *
 * @param {string} path
 */
export function urlOf(path) {
  return new URL(path, document.baseURI).href;
}

/**
 * Ask, and give back an answer that says yes.
 *
 * @param {string} path such as "v1/models"
 * @param {RequestInit & {json?: unknown}} [options] `json` becomes the body
 * @returns {Promise<Response>}
 * @throws {ApiError | ServerAway | DOMException} the last when `options.signal` aborted it
 */
export async function ask(path, { json, ...options } = {}) {
  const headers = new Headers(options.headers);
  if (key.get()) headers.set("Authorization", `Bearer ${key.get()}`);
  if (json !== undefined) {
    headers.set("Content-Type", "application/json");
    options = { method: "POST", ...options, body: JSON.stringify(json) };
  }
  let answer;
  try {
    answer = await fetch(urlOf(path), { ...options, headers, cache: "no-store" });
  } catch (error) {
    throw asFailure(error);
  }
  if (answer.ok) return answer;
  throw await errorOf(answer);
}

/**
 * Ask, and read JSON.
 *
 * @param {string} path
 * @param {RequestInit & {json?: unknown}} [options]
 * @returns {Promise<any>}
 */
export async function askJson(path, options) {
  const answer = await ask(path, options);
  try {
    return await answer.json();
  } catch (error) {
    throw asFailure(error);
  }
}

/**
 * What `fetch` or a broken body threw, as one of our errors; an abort stays what it is.
 *
 * @param {unknown} error
 */
export function asFailure(error) {
  if (error instanceof ApiError || error instanceof ServerAway || isAbort(error)) return error;
  return error instanceof TypeError ? new ServerAway() : error;
}

/** @param {unknown} error */
export function isAbort(error) {
  return error instanceof DOMException && error.name === "AbortError";
}

/** @param {Response} answer */
async function errorOf(answer) {
  let body = null;
  try {
    body = await answer.json();
  } catch {
    // Not ours: a proxy's page, or cut off. The status says enough.
  }
  const wait = Number.parseFloat(answer.headers.get("Retry-After") ?? "");
  return new ApiError(answer.status, body?.error ?? {}, {
    retryAfter_s: Number.isFinite(wait) ? wait : null,
    requestId: answer.headers.get("X-Request-Id"),
  });
}

/** An id for a request, so that it can be asked about and cancelled. */
export function newRequestId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return `req_${[...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}
