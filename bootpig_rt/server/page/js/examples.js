/** Examples: drawings that come with the package, and scenes to put a subject into. */

import { ask, askJson } from "./api.js";
import { byId, el } from "./dom.js";
import { toast } from "./toast.js";
import { explain } from "./words.js";

/**
 * @typedef {object} Example
 * @property {string} file
 * @property {string} noun
 * @property {string} reference_prompt
 */

/** What the pair inside the package was trained on; other pairs know these places as well. */
const SCENES = ["a snowy field", "a sandy beach", "a city street at night", "the bottom of the sea",
  "outer space", "a library", "a lake at sunset", "a theatre stage"];
/** The scene of each example on the empty stage, and how it is told. */
const STARTERS = /** @type {const} */ ([
  ["a library", "in a library"],
  ["a mountain valley", "in a mountain valley"],
  ["a snowy field", "in a snowy field"],
  ["a city street at night", "in a city at night"],
  ["a sandy beach", "on a sandy beach"],
  ["outer space", "in outer space"],
]);
const FOLDER = "page/subjects/";

/**
 * @param {string} referencePrompt "a photo of an owl"
 * @param {string} scene "a snowy field"
 */
export function promptOf(referencePrompt, scene) {
  return `${referencePrompt}, in the middle of ${scene}`;
}

/**
 * Show the examples.
 *
 * @param {object} handlers
 * @param {(example: Example, file: Promise<File>) => Promise<void>} handlers.onSubject one was chosen
 * @param {(scene: string) => void} handlers.onScene a scene was chosen, to be drawn
 */
export async function mountExamples({ onSubject, onScene }) {
  byId("scenes", HTMLElement).replaceChildren(
    ...SCENES.map((scene) => el("li", {}, el("button", { type: "button", textContent: scene, onclick: () => onScene(scene) }))),
  );
  /** @type {Example[]} */
  const examples = await askJson(`${FOLDER}subjects.json`);
  const choose = async (/** @type {Example} */ example, scene = "") => {
    try {
      await onSubject(example, fileOf(example));
      if (scene) onScene(scene);
    } catch (error) {
      toast(`${explain(error).title}.`);
    }
  };
  byId("examples", HTMLElement).replaceChildren(
    ...examples.map((example) => {
      const button = el("button", { type: "button", title: example.noun, onclick: () => choose(example) }, picture(example, ""));
      button.setAttribute("aria-label", `Example: ${example.reference_prompt}`);
      return el("li", {}, button);
    }),
  );
  byId("starters", HTMLElement).replaceChildren(
    ...examples.slice(0, STARTERS.length).map((example, index) => {
      const [scene, told] = STARTERS[index] ?? ["", ""];
      const noun = example.reference_prompt.replace(/^a photo of a/, "A");
      const text = el("span", {}, el("b", { textContent: noun }), ` ${told}`);
      return el("li", {}, el("button", { type: "button", onclick: () => choose(example, scene) }, picture(example, ""), text));
    }),
  );
}

/** @param {Example} example */
async function fileOf({ file }) {
  const blob = await (await ask(FOLDER + file)).blob();
  return new File([blob], file, { type: "image/png" });
}

/**
 * @param {Example} example
 * @param {string} alt
 */
function picture({ file }, alt) {
  return el("img", { src: FOLDER + file, alt, width: 96, height: 96 });
}
