/** Small helpers for the document. Text is always set as text: nothing here parses HTML. */

/**
 * The element of an id, which must be there and of the given class.
 *
 * @template {Element} T
 * @param {string} id
 * @param {new () => T} kind
 * @returns {T}
 */
export function byId(id, kind) {
  const found = document.getElementById(id);
  if (!(found instanceof kind)) throw new Error(`the page has no ${kind.name} named ${id}`);
  return found;
}

/**
 * A new element. Properties are set where the element has them, and are attributes otherwise;
 * functions named `onclick` and the like are listeners.
 *
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {Record<string, unknown>} [properties] undefined and null are left out
 * @param {...(Node | string | null)} children null is left out
 * @returns {HTMLElementTagNameMap[K]}
 */
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (typeof value === "function") {
      node.addEventListener(name.slice(2), /** @type {EventListener} */ (value));
    } else if (name in node) {
      Object.assign(node, { [name]: value });
    } else {
      node.setAttribute(name, String(value));
    }
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

/**
 * A button with a line icon and, unless `isQuiet`, a visible name.
 *
 * @param {string} name what it does; also its accessible name
 * @param {string} symbol id of a `<symbol>` of the page
 * @param {(event: Event) => void} onclick
 * @param {{isQuiet?: boolean, className?: string}} [options]
 */
export function iconButton(name, symbol, onclick, { isQuiet = false, className = "" } = {}) {
  const label = isQuiet ? null : el("span", { textContent: name });
  const button = el("button", { type: "button", className, onclick }, label);
  if (isQuiet) {
    button.classList.add("icon");
    button.setAttribute("aria-label", name);
    button.title = name;
  }
  button.prepend(icon(symbol));
  return button;
}

/** @param {string} symbol */
export function icon(symbol) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#${symbol}`);
  svg.append(use);
  return svg;
}

/**
 * Shows or hides; what is hidden is hidden from everybody.
 *
 * @param {HTMLElement} node
 * @param {boolean} isShown
 */
export function show(node, isShown) {
  node.hidden = !isShown;
}

/** Whether whoever reads asked for less motion. */
export function isMotionReduced() {
  return matchMedia("(prefers-reduced-motion: reduce)").matches;
}

/**
 * Arrow keys move between the buttons of a list, which takes one tab stop.
 *
 * @param {HTMLElement} list
 */
export function roveThrough(list) {
  const buttons = () => /** @type {HTMLButtonElement[]} */ ([...list.querySelectorAll("button")]);
  const settle = () => {
    const all = buttons();
    const current = all.find((one) => one.tabIndex === 0) ?? all[0];
    for (const one of all) one.tabIndex = one === current ? 0 : -1;
  };
  list.addEventListener("focusin", (event) => {
    const now = /** @type {HTMLElement} */ (event.target).closest("button");
    for (const one of buttons()) one.tabIndex = one === now ? 0 : -1;
  });
  list.addEventListener("keydown", (event) => {
    const all = buttons();
    const at = all.indexOf(/** @type {HTMLButtonElement} */ (document.activeElement));
    const next = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1,
      Home: 0, End: all.length - 1 }[event.key];
    if (at < 0 || next === undefined) return;
    event.preventDefault();
    all[Math.min(Math.max(next, 0), all.length - 1)]?.focus();
  });
  new MutationObserver(settle).observe(list, { childList: true });
  settle();
}
