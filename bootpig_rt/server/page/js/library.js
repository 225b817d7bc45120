/** The library of subjects: those that the server knows already, to be drawn, fetched or deleted. */

import { byId, el, iconButton, show } from "./dom.js";
import { blobOfDataUrl } from "./images.js";
import { deleteSubject, listSubjects, subjectFile, uploadSubject } from "./subjects.js";
import { toast, askWhether } from "./toast.js";
import { bytes, explain, plural, until } from "./words.js";

/** @typedef {import("./types.js").SubjectFacts} SubjectFacts */

/** Dispatches "choose" with a subject, or null when the chosen one is gone. */
export class Library extends EventTarget {
  /** @type {SubjectFacts[]} */
  subjects = [];

  #list = byId("library", HTMLElement);
  #chosen = "";
  #model;

  /** @param {() => string} model that an uploaded file is for */
  constructor(model) {
    super();
    this.#model = model;
    const input = byId("subject-file", HTMLInputElement);
    byId("upload-subject", HTMLButtonElement).addEventListener("click", () => input.click());
    input.addEventListener("change", () => {
      for (const file of input.files ?? []) this.upload(file);
      input.value = "";
    });
  }

  /** Ask the server what it knows. */
  async load() {
    try {
      this.subjects = await listSubjects();
    } catch {
      return; // the connection tells about it
    }
    if (this.#chosen && !this.subjects.some(({ id }) => id === this.#chosen)) this.choose(null);
    this.#render();
  }

  /** @param {SubjectFacts | null} subject */
  choose(subject) {
    this.#chosen = subject?.id ?? "";
    this.#render();
    this.dispatchEvent(new CustomEvent("choose", { detail: subject }));
  }

  /**
   * The subject that a picture shows, if the server still knows it.
   *
   * @param {string | null} id
   * @param {unknown} fingerprint
   */
  find(id, fingerprint) {
    const has = (/** @type {SubjectFacts} */ one) =>
      one.fingerprint === fingerprint || one.fingerprints?.includes(String(fingerprint));
    return this.subjects.find((one) => one.id === id) ?? (fingerprint ? this.subjects.find(has) : undefined);
  }

  /** @param {File} file */
  async upload(file) {
    try {
      const subject = await uploadSubject(file, this.#model());
      await this.load();
      this.choose(subject);
      toast(`“${subject.reference_prompt}” is in the library.`);
    } catch (error) {
      const { title, text } = explain(error);
      toast(`${title}. ${text}`);
    }
  }

  /** @param {SubjectFacts} subject */
  async #download(subject) {
    try {
      const url = URL.createObjectURL(await subjectFile(subject.id));
      el("a", { href: url, download: `${subject.id}.subject` }).click();
      setTimeout(() => URL.revokeObjectURL(url), 10_000);
    } catch (error) {
      toast(explain(error).text);
    }
  }

  /** @param {SubjectFacts} subject */
  async #delete(subject) {
    const isSure = await askWhether(`Delete “${subject.reference_prompt}” from the server?`, "Delete it");
    if (!isSure) return;
    try {
      await deleteSubject(subject.id);
      toast("Deleted from the server.");
    } catch (error) {
      toast(explain(error).text);
    }
    await this.load();
  }

  #render() {
    const focused = /** @type {HTMLElement | null} */ (document.activeElement);
    const kept = focused && this.#list.contains(focused) ? focused.getAttribute("aria-label") : null;
    byId("library-count", HTMLElement).textContent = this.subjects.length ? `${this.subjects.length}` : "";
    const none = el("li", { className: "hint", textContent: "None yet. What you draw from pictures comes here." });
    this.#list.replaceChildren(...(this.subjects.length ? this.subjects.map((one) => this.#row(one)) : [none]));
    if (kept) /** @type {HTMLElement | null} */ (this.#list.querySelector(`[aria-label="${CSS.escape(kept)}"]`))?.focus();
  }

  /** @param {SubjectFacts} subject */
  #row(subject) {
    const name = subject.reference_prompt;
    const preview = subject.preview ? URL.createObjectURL(blobOfDataUrl(subject.preview)) : "";
    const image = el("img", { src: preview, alt: "", onload: () => URL.revokeObjectURL(preview) });
    const facts = [
      plural(subject.num_references, "picture"),
      bytes(subject.bytes),
      subject.expires_at === null ? "" : until(subject.expires_at),
    ];
    const known = el("span", { className: "chip", textContent: "known, no reference pass" });
    show(known, subject.has_table);
    const choose = el(
      "button",
      { type: "button", className: "choose", onclick: () => this.choose(subject), ariaPressed: String(subject.id === this.#chosen) },
      image,
      el("span", {}, el("b", { textContent: name }), el("small", { textContent: facts.filter(Boolean).join(", ") }), known),
    );
    choose.setAttribute("aria-label", `${name}, ${facts.filter(Boolean).join(", ")}${subject.has_table ? ", known, no reference pass" : ""}`);
    return el(
      "li",
      {},
      choose,
      iconButton(`Download ${name}`, "i-download", () => this.#download(subject), { isQuiet: true }),
      iconButton(`Delete ${name}`, "i-trash", () => this.#delete(subject), { isQuiet: true }),
    );
  }
}
