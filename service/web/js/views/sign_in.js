import { getJson } from "../api.js";
import { storeKey } from "../key.js";
import { Failure } from "../parts/panels.js";
import { html, useEffect, useRef, useState } from "../ui.js";

export function SignIn({ onKey }) {
  const field = useRef();
  const [state, setState] = useState({ isBusy: false, error: null });
  useEffect(() => field.current.focus(), []);

  async function submit(event) {
    event.preventDefault();
    const key = field.current.value.trim();
    setState({ isBusy: true, error: null });
    try {
      await getJson("/v1/jobs?limit=1", { key });
      storeKey(key);
      onKey();
    } catch (error) {
      setState({ isBusy: false, error });
      field.current.focus();
    }
  }

  return html`<form class="panel sign-in" onSubmit=${submit}>
    <h1>API key</h1>
    <p>The first start of the service printed one, and keeps it in the file <code>api-key</code> of its data directory. It
      is kept for this tab only, and sent to this service only.</p>
    <label for="key">Key</label>
    <input id="key" ref=${field} type="password" autocomplete="off" spellcheck="false" required
      aria-invalid=${state.error?.status === 401 ? "true" : null} />
    ${state.error && html`<${Failure} error=${state.error} />`}
    <button type="submit" class="primary" disabled=${state.isBusy}>Continue</button>
  </form>`;
}
