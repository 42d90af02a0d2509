// Boxes of the page, and what stands in them while there is nothing to show.
import { html, useId } from "../ui.js";

export function Section({ title, note, children, wide = false, className = "" }) {
  const id = useId();
  return html`<section class="panel ${wide ? "wide" : ""} ${className}" aria-labelledby=${id}>
    <header><h2 id=${id}>${title}</h2>${note && html`<p class="note">${note}</p>`}</header>
    ${children}
  </section>`;
}

export const Loading = ({ what }) => html`<p class="quiet" role="status">Loading ${what} …</p>`;
export const Empty = ({ children }) => html`<p class="quiet">${children}</p>`;

export function Failure({ error, children }) {
  return html`<div class="callout bad" role="alert"><strong>${error.message}</strong>
    ${error.code && html` <code>${error.code}</code>`}${children}</div>`;
}

// [[name, value], …] as a definition list; what is null is left out.
export function Facts({ items }) {
  const shown = items.filter((item) => item && item[1] !== null && item[1] !== undefined);
  return html`<dl class="facts">${shown.map(
    ([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`,
  )}</dl>`;
}
