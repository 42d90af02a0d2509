// The browser's own modal dialog: it keeps the focus, closes on Escape, and gives the focus back.
import { html, useEffect, useId, useRef, useState } from "../ui.js";
import { Failure } from "./panels.js";

// Asks before `act()` is done; stays, and says why, when that fails.
export function Ask({ title, children, yes, no = "Keep it", danger = false, act, onClose, wide = false, isReady = true }) {
  const dialog = useRef();
  const id = useId();
  const [state, setState] = useState({ isBusy: false, error: null });
  useEffect(() => {
    const opener = document.activeElement;
    dialog.current.showModal();
    return () => opener?.focus?.();
  }, []);

  async function confirm(event) {
    event.preventDefault();
    setState({ isBusy: true, error: null });
    try {
      await act();
      onClose();
    } catch (error) {
      setState({ isBusy: false, error });
    }
  }

  return html`<dialog ref=${dialog} class=${wide ? "wide" : ""} aria-labelledby=${id} onClose=${onClose}>
    <form onSubmit=${confirm}>
      <h2 id=${id}>${title}</h2>
      ${children}
      ${state.error && html`<${Failure} error=${state.error} />`}
      <div class="actions">
        <button type="button" onClick=${() => dialog.current.close()}>${no}</button>
        <button type="submit" class=${danger ? "danger" : "primary"} disabled=${state.isBusy || !isReady}>${yes}</button>
      </div>
    </form>
  </dialog>`;
}
