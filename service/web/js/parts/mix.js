import { percent } from "../pure/format.js";
import { paletteName } from "../theme.js";
import { html } from "../ui.js";

// A mix as a bar; the same in words for who does not see it. Null is all there is.
export function MixBar({ mixture, categories, isSmall = false }) {
  if (!mixture) return html`<span class="quiet">all there is</span>`;
  const told = categories.map((name) => `${name} ${percent(mixture[name] ?? 0, 0)}`).join(", ");
  return html`<span class="mix ${isSmall ? "small" : ""}" role="img" aria-label=${told} title=${told}>${categories.map(
    (name, place) => html`<i key=${name} style=${{ width: `${100 * (mixture[name] ?? 0)}%`, color: `var(${paletteName(place)})` }}></i>`,
  )}</span>`;
}

export function MixLegend({ categories }) {
  return html`<ul class="legend">${categories.map(
    (name, place) => html`<li key=${name}><i class="swatch block" style=${{ color: `var(${paletteName(place)})` }} aria-hidden="true"></i>${name}</li>`,
  )}</ul>`;
}
