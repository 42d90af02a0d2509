import { html } from "../ui.js";

// A table that scrolls by itself when it is too wide, also by keyboard.
// columns: [{title, cell: (row) => …, number, head, hint, className}]; `head` marks the column that names the row.
export function Table({ caption, columns, rows, keyOf = (_row, place) => place, classOf = () => "", isFull = false }) {
  return html`<div class="scroll" tabindex="0" role="group" aria-label=${caption}>
    <table class=${isFull ? "full" : ""}>
      <caption class="unseen">${caption}</caption>
      <thead><tr>${columns.map(
        ({ title, number, hint }) => html`<th scope="col" class=${number ? "number" : ""} title=${hint}>${title}</th>`,
      )}</tr></thead>
      <tbody>${rows.map(
        (row, place) => html`<tr key=${keyOf(row, place)} class=${classOf(row)}>${columns.map((column) => cell(column, row))}</tr>`,
      )}</tbody>
    </table>
  </div>`;
}

function cell({ cell: content, number, head, className = "" }, row) {
  const classes = `${number ? "number" : ""} ${className}`;
  return head
    ? html`<th scope="row" class=${classes}>${content(row)}</th>`
    : html`<td class=${classes}>${content(row)}</td>`;
}
