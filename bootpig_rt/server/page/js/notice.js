/** Tells that the server is away or not ready yet, and when the next attempt is made. */

import { announce } from "./announce.js";
import { byId, el, show } from "./dom.js";

/** @type {Record<string, [title: string, text: string]>} */
const WORDS = {
  away: ["The server is away.", "Your pictures and what you typed are safe."],
  starting: ["The server is not ready.", "It is starting, or stopping."],
  key: ["The server wants a key.", "Enter it to go on."],
};

/** @param {import("./connection.js").Connection} connection */
export function mountNotice(connection) {
  const notice = byId("notice", HTMLElement);
  const wait = el("span", { ariaHidden: "true" });
  let timer = 0;
  const count = () => {
    const left_s = Math.ceil(((connection.nextAttemptAt ?? 0) - Date.now()) / 1000);
    wait.textContent = left_s > 0 ? ` Looking again in ${left_s} s.` : " Looking again…";
  };
  connection.addEventListener("change", () => {
    clearInterval(timer);
    const words = WORDS[connection.state];
    if (!words && !notice.hidden) announce("The server is back.");
    show(notice, words !== undefined);
    if (!words) return notice.replaceChildren();
    const [title, text] = words;
    const isWaiting = connection.state !== "key";
    const now = el("button", { type: "button", textContent: "Look now", onclick: () => connection.check() });
    notice.replaceChildren(el("p", {}, el("b", { textContent: title }), ` ${text}`, isWaiting ? wait : null), ...(isWaiting ? [now] : []));
    if (!isWaiting) return;
    count();
    timer = setInterval(count, 500);
  });
}
