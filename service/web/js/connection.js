// Whether the service answers, for the banner that says so.
let isUp = true;
const listeners = new Set();

function set(value) {
  if (value === isUp) return;
  isUp = value;
  for (const listener of listeners) listener(isUp);
}

export const reached = () => set(true);
export const unreachable = () => set(false);

export function onConnection(listener) {
  listeners.add(listener);
  listener(isUp);
  return () => listeners.delete(listener);
}
