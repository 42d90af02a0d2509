import { html, useId } from "../ui.js";

// A labelled choice of one among options: [[value, title], …].
export function Choice({ label, value, options, choose, isLabelSeen = true, className = "" }) {
  const id = useId();
  return html`<span class="choice ${className}"><label for=${id} class=${isLabelSeen ? "" : "unseen"}>${label}</label>
    <select id=${id} value=${value} onChange=${({ target }) => choose(target.value)}>
      ${options.map(([name, title]) => html`<option key=${name} value=${name}>${title}</option>`)}
    </select></span>`;
}
