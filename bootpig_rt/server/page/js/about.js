/** The panel on limits, bias and consent. */

import { byId, el, show } from "./dom.js";

/** Opens from two buttons. */
export function mountAbout() {
  const dialog = byId("about", HTMLDialogElement);
  for (const id of ["open-about", "open-about-2"]) {
    byId(id, HTMLButtonElement).addEventListener("click", () => dialog.showModal());
  }
}

/**
 * Where to report a picture, if whoever runs the server has said so.
 *
 * @param {string | null | undefined} contact an address of mail or of a page
 */
export function showContact(contact) {
  const node = byId("contact", HTMLElement);
  show(node, Boolean(contact));
  if (!contact) return;
  const isMail = !contact.includes("://") && contact.includes("@");
  const isPage = /^https?:\/\//.test(contact);
  const href = isMail ? `mailto:${contact}` : contact;
  const name = isMail || isPage ? el("a", { href, rel: "noreferrer", textContent: contact }) : contact;
  node.replaceChildren("To report a picture or ask whoever runs this server: ", name);
}
