import { html } from "../ui.js";

const MARKS = {
  queued: "○", submitting: "◔", running: "●", preempting: "◑", needs_approval: "◇", cancelling: "◑", succeeded: "✓", failed: "✕", cancelled: "⊘",
  pending: "○", finished: "✓", stopped: "◼", unfinished: "–",
}; // prettier-ignore

export const ACTIVE = ["needs_approval", "queued", "submitting", "running", "preempting", "cancelling"];
export const STATUSES = [...ACTIVE, "succeeded", "failed", "cancelled"];
export const isOver = (run) => !ACTIVE.includes(run.status);

// A word with a mark: told by shape and text, colour only helps.
export function Status({ status }) {
  return html`<span class="status ${status}"><span aria-hidden="true">${MARKS[status] ?? "·"}</span> ${status}</span>`;
}

export function Bar({ done, total, label }) {
  if (!total) return html`<span class="bar waiting" role="progressbar" aria-label=${label}></span>`;
  const share = Math.min(1, done / total);
  return html`<span class="bar" role="progressbar" aria-label=${label} aria-valuemin="0" aria-valuemax="100"
    aria-valuenow=${Math.round(100 * share)}><span style=${{ width: `${100 * share}%` }}></span></span>`;
}
