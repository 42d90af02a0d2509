// What the driver and its workers print: the last lines, and what comes.
import { follow } from "../api.js";
import { whileSeen } from "../live.js";
import { html, useEffect, useLayoutEffect, useRef, useState } from "../ui.js";
import { Section } from "./panels.js";

const TAIL = 200;
const KEPT_CHARS = 200_000;

export function Log({ path, isOver }) {
  const [isOpen, setIsOpen] = useState(false);
  return html`<${Section} title="Log" wide=${true}>
    <details onToggle=${({ target }) => setIsOpen(target.open)}>
      <summary>${isOver ? "The last lines" : "The last lines, and what comes"}</summary>
      ${isOpen && html`<${Lines} path=${path} />`}
    </details><//>`;
}

function Lines({ path }) {
  const box = useRef();
  const isAtEnd = useRef(true);
  const [text, setText] = useState(null);
  const [error, setError] = useState(null);

  useEffect(
    () =>
      whileSeen(
        async (signal) => {
          let read = "";
          for await (const piece of follow(`${path}/logs?follow=true&tail=${TAIL}`, signal)) {
            read = (read + piece).slice(-KEPT_CHARS);
            if (!signal.aborted) (setText(read), setError(null));
          }
          setText(read);
          return "over";
        },
        { onError: setError },
      ),
    [path],
  );
  useLayoutEffect(() => {
    if (isAtEnd.current && box.current) box.current.scrollTop = box.current.scrollHeight;
  }, [text]);

  const onScroll = ({ target }) => (isAtEnd.current = target.scrollTop + target.clientHeight > target.scrollHeight - 8);
  return html`
    ${error && html`<p class="quiet">The log cannot be read now: ${error.message}</p>`}
    <pre class="log" ref=${box} tabindex="0" role="log" aria-live="off" aria-label="Log" onScroll=${onScroll}>${
      text ?? (error ? "" : "Loading …")
    }</pre>`;
}
