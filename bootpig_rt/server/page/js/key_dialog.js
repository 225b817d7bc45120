/** Asks for an API key where the server wants one. */

import { key } from "./api.js";
import { byId, show } from "./dom.js";

/** @param {import("./connection.js").Connection} connection */
export function mountKeyDialog(connection) {
  const dialog = byId("key-dialog", HTMLDialogElement);
  const input = byId("key", HTMLInputElement);
  const problem = byId("key-problem", HTMLElement);
  const button = byId("open-key", HTMLButtonElement);
  const forget = byId("key-forget", HTMLButtonElement);
  const say = (/** @type {string} */ text) => {
    problem.textContent = text;
    show(problem, text !== "");
    input.setAttribute("aria-invalid", String(text !== ""));
  };
  const open = () => {
    say("");
    input.value = key.get();
    show(forget, key.get() !== "");
    if (!dialog.open) dialog.showModal();
    input.focus();
  };
  button.addEventListener("click", open);
  forget.addEventListener("click", () => {
    key.forget();
    dialog.close();
    location.reload();
  });
  byId("key-form", HTMLFormElement).addEventListener("submit", async (event) => {
    event.preventDefault();
    await connection.useKey(input.value.trim());
    if (connection.state === "key") {
      say("The server does not know this key.");
      input.focus();
    } else {
      dialog.close();
    }
  });
  connection.addEventListener("change", () => {
    show(button, connection.state === "key" || key.get() !== "");
    if (connection.state === "key") open();
  });
}
