/** Whether the server is there, and what it said about itself. Comes back by itself. */

import { ApiError, ServerAway, ask, askJson, key } from "./api.js";

/** @typedef {import("./types.js").Model} Model */
/** @typedef {import("./types.js").Limits} Limits */
/**
 * `key` means that the server wants an API key; `starting`, that it is there and not ready.
 * @typedef {"connecting" | "ready" | "starting" | "away" | "key"} State
 */

const RETRY_AFTER_S = [1, 2, 3, 5, 8, 10];
const HEARTBEAT_S = 10;
/** Codes of 503 that are about the whole server; none is a proxy's answer. */
const NOT_READY = ["not_ready", "draining", ""];

/** Dispatches "change" when the state or the models change. */
export class Connection extends EventTarget {
  /** @type {State} */
  state = "connecting";
  /** @type {Model[]} */
  models = [];
  /** @type {Limits} */
  limits = {};
  /** When the next attempt is made, in milliseconds since 1970; null while none is planned. */
  nextAttemptAt = /** @type {number | null} */ (null);

  #attempts = 0;
  #timer = 0;
  /** @type {Promise<void> | null} */
  #checking = null;

  constructor() {
    super();
    addEventListener("online", () => this.check());
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) this.check();
    });
  }

  /** Look at once. Several calls at the same time are one. */
  check() {
    clearTimeout(this.#timer);
    this.#checking ??= this.#look().then((state) => {
      this.#checking = null;
      this.#settle(state);
    });
    return this.#checking;
  }

  /**
   * What a failed request tells about the server. Requests call this with whatever they caught.
   *
   * @param {unknown} error
   */
  hear(error) {
    if (error instanceof ServerAway) this.#settle("away");
    else if (error instanceof ApiError && error.status === 401) this.#settle("key");
    else if (isNotReady(error)) this.#settle("starting");
  }

  /** @param {string} value */
  useKey(value) {
    key.set(value);
    return this.check();
  }

  /** @returns {Promise<State>} */
  async #look() {
    try {
      await ask("readyz");
      if (this.state === "ready") return "ready";
      const [models, limits] = await Promise.all([askJson("v1/models"), askJson("v1/limits")]);
      this.models = models.data;
      this.limits = limits;
      return "ready";
    } catch (error) {
      if (error instanceof ApiError && error.status === 401) return "key";
      return error instanceof ApiError ? "starting" : "away";
    }
  }

  /** @param {State} state */
  #settle(state) {
    const isNew = state !== this.state;
    this.state = state;
    clearTimeout(this.#timer);
    this.#attempts = state === "ready" ? 0 : this.#attempts + 1;
    let wait_s = HEARTBEAT_S;
    if (state === "away" || state === "starting") {
      wait_s = RETRY_AFTER_S[Math.min(this.#attempts, RETRY_AFTER_S.length) - 1] ?? HEARTBEAT_S;
    }
    this.nextAttemptAt = null;
    if (state !== "key") {
      this.nextAttemptAt = Date.now() + 1000 * wait_s;
      this.#timer = setTimeout(() => {
        if (state === "ready" && document.hidden) this.#settle(state); // nobody looks
        else this.check();
      }, 1000 * wait_s);
    }
    if (isNew) this.dispatchEvent(new Event("change"));
  }
}

/** @param {unknown} error */
function isNotReady(error) {
  return error instanceof ApiError && error.status === 503 && NOT_READY.includes(error.code);
}
