/** The form: what it says as settings, settings put into it, and where something is wrong. */

import { byId, el } from "./dom.js";

/** @typedef {import("./types.js").Settings} Settings */
/** @typedef {import("./types.js").Model} Model */

const NUMBERS = /** @type {const} */ (["num_inference_steps", "image_guidance_scale", "text_guidance_scale", "seed"]);
const TEXTS = /** @type {const} */ (["size", "solver", "merge", "reference_schedule"]);
const FALLBACK = { solvers: ["ddim", "dpmpp_2m", "unipc"], merges: ["argmax", "softmax", "mean", "concat"] };

export class Form {
  /** @type {Model[]} */
  models = [];

  #node = byId("composer", HTMLFormElement);

  /**
   * Offer what the server has.
   *
   * @param {Model[]} models
   * @param {import("./types.js").Limits} limits
   */
  offer(models, limits) {
    this.models = models;
    const chosen = this.#control("model").value;
    this.#fill("model", models.map(({ id, is_few_step }) => [id, is_few_step ? `${id} (few steps)` : id]));
    if (models.some(({ id }) => id === chosen)) this.#control("model").value = chosen;
    for (const [name, values] of Object.entries({
      solver: limits.solvers ?? FALLBACK.solvers,
      merge: limits.merges ?? FALLBACK.merges,
    })) {
      const kept = this.#control(name).value;
      this.#fill(name, [["", ""], ...values.map((value) => /** @type {[string, string]} */ ([value, value]))]);
      this.#control(name).value = kept;
    }
    if (limits.max_images) this.#control("n").setAttribute("max", String(limits.max_images));
    if (limits.max_steps) this.#control("num_inference_steps").setAttribute("max", String(limits.max_steps));
    this.showDefaults();
  }

  /** Show what the chosen model does where the form says nothing. */
  showDefaults() {
    const { defaults = {} } = this.model ?? {};
    for (const name of [...NUMBERS, ...TEXTS]) {
      if (name === "seed") continue;
      const value = name === "size" ? this.ownSize : defaults[name];
      const control = this.#control(name);
      if (control instanceof HTMLSelectElement) {
        const [none] = control.options;
        if (none) none.textContent = value ? `default (${value})` : "default";
      } else if (control instanceof HTMLInputElement) {
        control.placeholder = String(value ?? "");
      }
    }
  }

  /** The chosen model. @returns {Model | undefined} */
  get model() {
    return this.models.find(({ id }) => id === this.#control("model").value) ?? this.models[0];
  }

  /** What the model draws where the form says no size, as "WxH". */
  get ownSize() {
    const side = this.model?.size_px ?? 512;
    return `${side}x${side}`;
  }

  get prompt() {
    return this.#control("prompt").value.trim();
  }

  set prompt(value) {
    this.#control("prompt").value = value;
  }

  /** @returns {Settings} */
  read() {
    const number = (/** @type {string} */ name) => {
      const text = this.#control(name).value.trim();
      return text === "" ? null : Number(text);
    };
    const text = (/** @type {string} */ name) => this.#control(name).value.trim() || null;
    return {
      model: this.model?.id ?? "",
      prompt: this.prompt,
      negative_prompt: text("negative_prompt") ?? "",
      n: number("n") ?? 1,
      num_inference_steps: number("num_inference_steps"),
      image_guidance_scale: number("image_guidance_scale"),
      text_guidance_scale: number("text_guidance_scale"),
      seed: number("seed"),
      size: text("size"),
      solver: text("solver"),
      merge: text("merge"),
      reference_schedule: text("reference_schedule"),
    };
  }

  /**
   * Put the parameters of a picture into the form. They may come from anybody's file: what is not
   * of the right type is left out.
   *
   * @param {import("./types.js").Parameters} parameters
   * @param {string} model as the server calls it; where it is not there, the chosen one stays
   */
  restore(parameters, model) {
    const { width, height } = parameters;
    const size = Number.isInteger(width) && Number.isInteger(height) ? `${width}x${height}` : "";
    const values = { ...parameters, size, n: 1 };
    for (const name of ["prompt", "negative_prompt", "n", ...NUMBERS, ...TEXTS]) {
      const value = /** @type {Record<string, unknown>} */ (values)[name];
      const isNumber = name === "n" || NUMBERS.includes(/** @type {any} */ (name));
      const isTooLarge = Number.isInteger(value) && !Number.isSafeInteger(value); // it was rounded
      const isGood = isNumber ? Number.isFinite(value) && !isTooLarge : typeof value === "string";
      this.#control(name).value = isGood ? String(value) : "";
    }
    if (this.models.some(({ id }) => id === model)) this.#control("model").value = model;
    this.showDefaults();
  }

  /** Leave everything but prompt and model to the model. */
  reset() {
    for (const name of ["negative_prompt", ...NUMBERS, ...TEXTS]) this.#control(name).value = "";
    this.#control("n").value = "1";
    this.clearProblems();
  }

  /**
   * An explanation with the field called what the form calls it.
   *
   * @param {import("./words.js").Explanation} said
   * @returns {import("./words.js").Explanation}
   */
  named(said) {
    const control = said.param && this.#node.elements.namedItem(said.param);
    const label = control instanceof HTMLInputElement ? control.labels?.[0]?.firstChild : null;
    if (!said.param || !label?.textContent) return said;
    return { ...said, text: said.text.replace(said.param, label.textContent.trim()) };
  }

  /**
   * Mark a field as wrong, and go there.
   *
   * @param {string} name of a parameter, as the server names it
   * @param {string} message
   */
  blame(name, message) {
    const control = this.#node.elements.namedItem(name);
    if (!(control instanceof HTMLElement)) return;
    const id = `${name}-problem`;
    control.closest("details")?.setAttribute("open", "");
    control.setAttribute("aria-invalid", "true");
    control.setAttribute("aria-describedby", id);
    document.getElementById(id)?.remove();
    const field = control.closest(".joined, .tick") ?? control;
    field.after(el("span", { id, className: "problem", textContent: message }));
    control.focus();
  }

  clearProblems() {
    for (const control of this.#node.querySelectorAll("[aria-invalid]")) this.clearProblem(control);
  }

  /** @param {Element} control that was marked, or not */
  clearProblem(control) {
    control.removeAttribute("aria-invalid");
    control.removeAttribute("aria-describedby");
    document.getElementById(`${control.id}-problem`)?.remove();
  }

  /**
   * @param {string} name
   * @returns {HTMLInputElement | HTMLSelectElement | HTMLTextAreaElement}
   */
  #control(name) {
    return /** @type {HTMLInputElement} */ (byId(name, HTMLElement));
  }

  /**
   * @param {string} name
   * @param {[value: string, text: string][]} options
   */
  #fill(name, options) {
    const nodes = options.map(([value, text]) => el("option", { value, textContent: text }));
    this.#control(name).replaceChildren(...nodes);
  }
}

/**
 * Settings as the body of a request: what is left to the model is left out.
 *
 * @param {Settings & Record<string, unknown>} settings with what else the request says
 * @param {string | null} subjectId
 * @returns {Record<string, unknown>}
 */
export function bodyOf(settings, subjectId) {
  const isSaid = (/** @type {[string, unknown]} */ [name, value]) =>
    value !== null && value !== "" && !(name === "n" && value === 1);
  return Object.fromEntries(Object.entries({ ...settings, subject_id: subjectId }).filter(isSaid));
}
