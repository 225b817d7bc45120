/** What is told of a picture that is done: how it was made, in how long, and what its file carries. */

import { byId, el } from "./dom.js";
import { readPng } from "./png.js";
import { bytes, milliseconds, passesInWords, plural, sentence } from "./words.js";

/** @typedef {import("./types.js").Picture} Picture */

const HELD_BACK = "The server's safety check flagged the picture, so it shows grey. Try another seed or prompt.";

/**
 * @param {Picture} picture
 * @param {string} url of its file
 */
export function tellOutcome(picture, url) {
  const { model, parameters, timings, took_ms } = picture;
  byId("outcome-prompt", HTMLElement).textContent = String(parameters["prompt"] ?? "");
  const facts = [
    took_ms ? milliseconds(took_ms) : "",
    plural(Number(parameters["num_inference_steps"]), "step"),
    `seed ${parameters["seed"]}`,
    took_ms ? passesInWords(picture) : "",
    model || String(parameters["model"] ?? ""),
  ];
  const items = facts.filter(Boolean).map((text) => el("li", { textContent: text }));
  byId("facts", HTMLElement).replaceChildren(...items);
  const said = picture.isHeldBack ? [HELD_BACK] : picture.warnings.map(sentence);
  byId("warnings", HTMLElement).replaceChildren(...said.map((text) => el("li", { textContent: text })));
  byId("badge", HTMLElement).textContent = picture.isHeldBack ? "Held back" : "AI generated";
  const link = byId("download", HTMLAnchorElement);
  link.href = url;
  link.download = fileName(parameters);
  const rows = [...Object.entries(parameters), ...Object.entries(timings)]
    .filter(([, value]) => value !== null && value !== "")
    .map(([name, value]) => {
      const head = el("th", { scope: "row", textContent: name });
      return el("tr", {}, head, el("td", { textContent: String(value) }));
    });
  byId("parameter-rows", HTMLElement).replaceChildren(...rows);
  tellMarks(picture.blob);
}

/** What a picture is to somebody who does not see it. @param {Picture} picture */
export function altOf({ parameters, isHeldBack }) {
  if (isHeldBack) return "A grey square in place of a picture that was held back";
  return `Generated picture: ${parameters["prompt"]}`;
}

/**
 * A name for the file of a picture.
 *
 * @param {import("./types.js").Parameters} parameters
 */
export function fileName({ prompt, seed }) {
  const words = String(prompt ?? "picture").toLowerCase().replace(/^a photo of /, "");
  const slug = words.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-+|-+$/g, "").slice(0, 60);
  return `${slug || "picture"}-${seed ?? 0}.png`;
}

/** @param {Blob} blob */
async function tellMarks(blob) {
  const facts = await readPng(blob);
  const marks = [
    facts?.texts["parameters"] ? "its parameters" : "",
    facts?.isMarkedGenerated ? "the mark “trained algorithmic media”" : "",
    facts?.hasCredentials ? "Content Credentials, signed by the server" : "",
  ].filter(Boolean);
  const carries = marks.length ? `The file carries ${marks.join(", ")}` : "The file carries no marks";
  byId("marks", HTMLElement).textContent = `${carries}. ${bytes(blob.size)}.`;
}
