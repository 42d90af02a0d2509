// One sweep: how it stands, and what it has found.
import { getJson, getText } from "../api.js";
import { followRun, usePolled } from "../live.js";
import { Empty, Failure, Loading } from "../parts/panels.js";
import { Log } from "../parts/log.js";
import { RunHeader } from "../parts/run_header.js";
import { isOver } from "../parts/status.js";
import { categoriesOf } from "../pure/sweep.js";
import { html, useEffect, useState } from "../ui.js";
import { Candidates } from "./candidates.js";
import { Findings } from "./findings.js";
import { Spec } from "./outcome.js";
import { SweepStages } from "./stages.js";
import { Trials } from "./trials.js";

const POLL_MS = 2000;

export function Sweep({ id }) {
  const path = `/v1/sweeps/${encodeURIComponent(id)}`;
  const { sweep, error, again } = useSweep(path);
  const { data: results } = useResults(path, sweep);
  useEffect(() => {
    document.title = `${sweep ? `${sweep.name} ` : ""}${id} – Sleddog`;
    return () => (document.title = "Sleddog");
  }, [id, sweep?.name]);
  if (error && !error.isTemporary) return html`<h1>${id}</h1><${Failure} error=${error}><p><a href="#/sweeps">All sweeps</a></p><//>`;
  if (!sweep) return html`<h1>${id}</h1><${Loading} what="the sweep" />`;
  return html`
    <${RunHeader} run=${sweep} kind="sweep" path=${path} onActed=${again}>
      ${isOver(sweep) && results && html`<${Report} path=${path} id=${id} />`}<//>
    <${SweepStages} sweep=${sweep} results=${results} />
    <div class="panels">
      ${results ? html`<${Found} results=${results} path=${path} />` : html`<div class="panel wide"><${Empty}>${
        isOver(sweep) ? "It ended before its first trial." : "What it finds is shown here from its first trial on."
      }<//></div>`}
      <${Log} path=${path} isOver=${isOver(sweep)} />
      <${Spec} run=${sweep} />
    </div>`;
}

function Found({ results, path }) {
  const categories = categoriesOf(results);
  return html`<${Findings} results=${results} />
    <${Candidates} results=${results} categories=${categories} path=${path} />
    <${Trials} results=${results} />`;
}

function useSweep(path) {
  const [state, setState] = useState({ sweep: null, error: null });
  const [round, setRound] = useState(0);
  useEffect(() => {
    const onError = (error) => setState(({ sweep }) => ({ sweep, error }));
    const onSnapshot = (run) => setState(({ sweep }) => ({ sweep: { ...sweep, ...run }, error: null }));
    getJson(path).then((sweep) => setState((state) => ({ ...state, sweep: { ...sweep, ...state.sweep, spec: sweep.spec } })), onError);
    return followRun(path, { include: ["snapshots"], position: () => 0, onSnapshot, onError });
  }, [path, round]);
  return { ...state, again: () => setRound((count) => count + 1) };
}

// There are none before the first trial is planned.
function useResults(path, sweep) {
  const isThere = Boolean(sweep?.progress.trials_planned);
  const load = (signal) => (isThere ? getJson(`${path}/results`, { signal }) : null);
  return usePolled(load, isThere && !isOver(sweep) ? POLL_MS : null, [path, isThere, sweep?.status]);
}

// As a file: a link could not send the key, and here the page's policy would not let the report's own styles be used.
function Report({ path, id }) {
  const [error, setError] = useState(null);
  async function download() {
    try {
      const url = URL.createObjectURL(new Blob([await getText(`${path}/report`)], { type: "text/html" }));
      Object.assign(document.createElement("a"), { href: url, download: `${id}.html` }).click();
      URL.revokeObjectURL(url);
      setError(null);
    } catch (caught) {
      setError(caught);
    }
  }
  return html`<button type="button" onClick=${download}>Download the report</button>
    ${error && html`<${Failure} error=${error} />`}`;
}
