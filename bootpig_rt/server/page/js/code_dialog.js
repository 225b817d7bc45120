/** Shows a picture's request as code, to be copied. */

import { urlOf } from "./api.js";
import { asCurl, asPython } from "./code.js";
import { byId } from "./dom.js";
import { fileName } from "./outcome.js";
import { toast } from "./toast.js";

/** @typedef {import("./types.js").Picture} Picture */

const OF_REQUEST = ["prompt", "negative_prompt", "num_inference_steps", "image_guidance_scale",
  "text_guidance_scale", "seed", "solver", "merge", "reference_schedule"];

/**
 * The request that draws exactly this picture again.
 *
 * @param {Picture} picture
 * @returns {Record<string, unknown>}
 */
export function requestOf({ model, parameters, subject_id }) {
  const said = OF_REQUEST.filter((name) => parameters[name] !== null && parameters[name] !== "");
  const body = Object.fromEntries(said.map((name) => [name, parameters[name]]));
  if (!subject_id) {
    delete body["merge"];
    delete body["reference_schedule"];
  }
  const size = `${parameters["width"]}x${parameters["height"]}`;
  return { ...(model && { model }), ...body, size, ...(subject_id && { subject_id }) };
}

/**
 * @param {() => boolean} needsKey
 * @returns {(picture: Picture) => void} opens the dialog
 */
export function mountCodeDialog(needsKey) {
  const dialog = byId("code-dialog", HTMLDialogElement);
  const code = byId("code", HTMLElement);
  /** @type {Picture | null} */
  let shown = null;
  const render = () => {
    if (!shown) return;
    const language = /** @type {HTMLInputElement} */ (dialog.querySelector("[name=language]:checked")).value;
    const call = {
      base: urlOf(".").replace(/\/$/, ""),
      body: requestOf(shown),
      file: fileName(shown.parameters),
      needsKey: needsKey(),
    };
    code.textContent = language === "curl" ? asCurl(call) : asPython(call);
    const hints = [
      shown.parameters["canvas_fingerprint"] ? "This one was drawn into a picture, which the code leaves out: send it and its mask to /v1/images/edits." : "",
      hasMaps(shown) ? "It follows maps, which the code leaves out: send them as controls." : "",
      shown.subject_id ? "The server keeps the subject for a while only; its library says how long." : "",
      call.needsKey ? "Put the key into the variable BOOTPIG_KEY." : "",
      language === "python" ? "Needs pip install openai." : "",
    ];
    byId("code-hint", HTMLElement).textContent = hints.filter(Boolean).join(" ");
  };
  dialog.addEventListener("change", render);
  byId("copy-code", HTMLButtonElement).addEventListener("click", async () => {
    toast((await copy(code)) ? "Copied." : "Copying is not allowed here: select the text.");
  });
  return (picture) => {
    shown = picture;
    render();
    dialog.showModal();
  };
}

/** @param {Picture} picture */
function hasMaps({ parameters }) {
  const { controls } = parameters;
  return Array.isArray(controls) && controls.length > 0;
}

/** @param {HTMLElement} node @returns {Promise<boolean>} */
async function copy(node) {
  try {
    await navigator.clipboard.writeText(node.textContent ?? "");
    return true;
  } catch {
    // Not over plain HTTP from another machine. The older way is allowed there.
    getSelection()?.selectAllChildren(node);
    return document.execCommand("copy");
  }
}
