/** Light and dark: the system's choice, until somebody chooses otherwise. */

const NAME = "bootpig.theme";
const system = matchMedia("(prefers-color-scheme: dark)");

/** @param {HTMLButtonElement} button a toggle, pressed while it is dark */
export function mountTheme(button) {
  const root = document.documentElement;
  const isDark = () => (root.dataset["theme"] ?? (system.matches ? "dark" : "light")) === "dark";
  const tell = () => button.setAttribute("aria-pressed", String(isDark()));
  button.addEventListener("click", () => {
    const wanted = isDark() ? "light" : "dark";
    if ((wanted === "dark") === system.matches) {
      delete root.dataset["theme"];
      localStorage.removeItem(NAME);
    } else {
      root.dataset["theme"] = wanted;
      localStorage.setItem(NAME, wanted);
    }
    tell();
  });
  system.addEventListener("change", tell);
  tell();
}
