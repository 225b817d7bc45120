/** Files that are dropped or pasted anywhere, sorted by what they are. */

import { byId, show } from "./dom.js";
import { readParameters } from "./png.js";

/**
 * @param {object} handlers
 * @param {(files: File[]) => void} handlers.onPictures of a subject
 * @param {(file: File) => void} handlers.onSubject a .subject file
 * @param {(parameters: import("./types.js").Parameters, file: File) => void} handlers.onOwnPicture one drawn here
 */
export function mountDrop({ onPictures, onSubject, onOwnPicture }) {
  const hint = byId("drop-hint", HTMLElement);
  const zone = byId("drop", HTMLElement);
  let depth = 0;
  const settle = (/** @type {number} */ by) => {
    depth = Math.max(0, depth + by);
    show(hint, depth > 0);
  };
  const carriesFiles = (/** @type {DragEvent} */ event) => event.dataTransfer?.types.includes("Files") ?? false;

  const sort = async (/** @type {File[]} */ files, /** @type {boolean} */ areReferences) => {
    const pictures = [];
    for (const file of files) {
      if (/\.(subject|safetensors)$/.test(file.name)) {
        onSubject(file);
        continue;
      }
      const parameters = areReferences ? null : await readParameters(file);
      if (parameters) onOwnPicture(parameters, file);
      else pictures.push(file);
    }
    if (pictures.length) onPictures(pictures);
  };

  addEventListener("dragenter", (event) => {
    if (carriesFiles(event)) settle(1);
  });
  addEventListener("dragleave", (event) => {
    if (carriesFiles(event)) settle(-1);
  });
  addEventListener("dragover", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    zone.classList.toggle("over", isWithin(zone, event));
  });
  addEventListener("drop", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    settle(-depth);
    zone.classList.remove("over");
    sort([...(event.dataTransfer?.files ?? [])], isWithin(zone, event));
  });
  addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!files.length) return;
    event.preventDefault();
    sort(files, false);
  });
}

/**
 * @param {HTMLElement} zone
 * @param {DragEvent} event
 */
function isWithin(zone, event) {
  const { left, right, top, bottom } = zone.getBoundingClientRect();
  return event.clientX >= left && event.clientX <= right && event.clientY >= top && event.clientY <= bottom;
}
