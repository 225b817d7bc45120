/** A short word at the edge of the page, and a question with two answers. */

import { announce } from "./announce.js";
import { byId, el, show } from "./dom.js";

const SHOWN_MS = 8000;
let timer = 0;

/**
 * @param {string} text
 * @param {{action?: string, onAction?: () => void}} [options]
 */
export function toast(text, { action, onAction } = {}) {
  const node = byId("toast", HTMLElement);
  const hide = () => {
    if (node.matches(":hover, :focus-within")) timer = setTimeout(hide, SHOWN_MS);
    else show(node, false);
  };
  const press = () => {
    show(node, false);
    onAction?.();
  };
  const button = action ? el("button", { type: "button", textContent: action, onclick: press }) : null;
  node.replaceChildren(el("p", { textContent: text }), ...(button ? [button] : []));
  show(node, true);
  announce(text);
  clearTimeout(timer);
  timer = setTimeout(hide, SHOWN_MS);
}

/**
 * @param {string} question
 * @param {string} yes
 * @returns {Promise<boolean>}
 */
export function askWhether(question, yes) {
  const dialog = byId("ask", HTMLDialogElement);
  byId("ask-text", HTMLElement).textContent = question;
  byId("ask-yes", HTMLElement).textContent = yes;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((done) => {
    dialog.addEventListener("close", () => done(dialog.returnValue === "yes"), { once: true });
  });
}
