// Light or dark: as the system has it, unless chosen here.
const NAME = "sleddog-theme";
export const THEMES = ["auto", "light", "dark"];

export const theme = () => (THEMES.includes(localStorage.getItem(NAME)) ? localStorage.getItem(NAME) : "auto");

export function setTheme(value) {
  localStorage.setItem(NAME, value);
  document.documentElement.dataset.theme = value;
  dispatchEvent(new Event("theme-changed"));
}

document.documentElement.dataset.theme = theme();

// Calls back whenever colours may have changed: a canvas must be drawn anew then.
export function onTheme(listener) {
  const system = matchMedia("(prefers-color-scheme: dark)");
  addEventListener("theme-changed", listener);
  system.addEventListener("change", listener);
  return () => {
    removeEventListener("theme-changed", listener);
    system.removeEventListener("change", listener);
  };
}

// A custom property's colour, as it is now; `light-dark()` is resolved only where it is used.
export function colour(name) {
  const probe = document.createElement("span");
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

const NUM_PALETTE = 8;

// Of the n-th category, by its place among the names; the order never changes while a page is shown.
export const paletteName = (place) => `--series-${(place % NUM_PALETTE) + 1}`;
