// One sweep: how it stands, and what it has found.
import { getJson } from "../api.js";
import { usePolled } from "../live.js";
import { Failure, Loading } from "../parts/panels.js";
import { RunHeader } from "../parts/run_header.js";
import { html } from "../ui.js";

const POLL_MS = 2000;

export function Sweep({ id }) {
  const path = `/v1/sweeps/${encodeURIComponent(id)}`;
  const { data: sweep, error } = usePolled((signal) => getJson(path, { signal }), POLL_MS, [path]);
  if (error && !error.isTemporary) return html`<h1>${id}</h1><${Failure} error=${error} />`;
  if (!sweep) return html`<h1>${id}</h1><${Loading} what="the sweep" />`;
  return html`<${RunHeader} run=${sweep} kind="sweep" path=${path} />`;
}
