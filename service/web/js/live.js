// Keeping what is shown up to date: by asking again, and by following streams. Nothing is asked for a tab that nobody sees:
// a browser has only six connections to one origin, and hidden tabs must not hold them.
import { messages, ServiceError } from "./api.js";
import { useEffect, useRef, useState } from "./ui.js";

const MAX_DELAY_MS = 10_000;

// A job or sweep that is gone, or a key that is refused, stays so; all else is worth another try.
const isFinal = (error) => error instanceof ServiceError && !error.isTemporary;

export const sleep = (ms, signal) =>
  new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });

// Runs `work(signal)` while the tab is seen: again after `pauseMs`, until it returns "over"; after an error later and later.
export function whileSeen(work, { pauseMs = 0, onError = () => {} } = {}) {
  let controller = null;
  let isOver = false;

  async function run(signal) {
    let delay = 500;
    while (!signal.aborted && !isOver) {
      try {
        isOver = (await work(signal, () => (delay = 500))) === "over";
        if (isOver || signal.aborted) return;
        await sleep(pauseMs, signal);
      } catch (error) {
        if (signal.aborted) return;
        onError(error);
        if (isFinal(error)) return;
        await sleep(delay, signal);
        delay = Math.min(2 * delay, MAX_DELAY_MS);
      }
    }
  }

  function look() {
    if (document.hidden) {
      controller?.abort();
      controller = null;
    } else if (!controller && !isOver) {
      controller = new AbortController();
      run(controller.signal);
    }
  }

  document.addEventListener("visibilitychange", look);
  look();
  return () => {
    document.removeEventListener("visibilitychange", look);
    isOver = true;
    controller?.abort();
  };
}

// {data, error} of what `load(signal)` gives, asked again every `pauseMs`, or once if that is null. Old data stays while the
// service is away, and until the new is there; that of another thing, told by the first of the inputs, does not.
export function usePolled(load, pauseMs, inputs) {
  const [state, setState] = useState({ data: null, error: null });
  const shown = useRef(null);
  useEffect(() => {
    if (shown.current !== inputs[0]) setState({ data: null, error: null });
    shown.current = inputs[0];
    const work = async (signal) => {
      const data = await load(signal);
      if (!signal.aborted) setState({ data, error: null });
      return pauseMs === null ? "over" : undefined;
    };
    const onError = (error) => setState(({ data }) => ({ data, error }));
    return whileSeen(work, { pauseMs: pauseMs ?? 0, onError });
  }, inputs);
  return state;
}

// Follows the events of a job or a sweep from where `position()` is, through broken connections, until it is over.
export function followRun(path, { include, position, onSnapshot, onEvent, onError }) {
  const query = include.map((name) => `include=${name}`).join("&");
  async function work(signal, progress) {
    for await (const { event, data } of messages(`${path}/events:stream?${query}&after=${position()}`, signal)) {
      progress();
      if (signal.aborted) return undefined;
      if (event === "end") return "over";
      if (event === "snapshot") onSnapshot(JSON.parse(data));
      else onEvent?.(JSON.parse(data));
    }
    return undefined; // the service has stopped: it comes back
  }
  return whileSeen(work, { pauseMs: 500, onError });
}
