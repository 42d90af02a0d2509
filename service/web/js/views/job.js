// One job: its history is read once, then followed.
import { getJson } from "../api.js";
import { followRun, usePolled } from "../live.js";
import { Failure, Loading } from "../parts/panels.js";
import { RunHeader } from "../parts/run_header.js";
import { Log } from "../parts/log.js";
import { isOver } from "../parts/status.js";
import { emptyHistory, fold } from "../pure/history.js";
import { html, useEffect, useRef, useState } from "../ui.js";
import { Curves } from "./curves.js";
import { DataReport } from "./data_report.js";
import { Benchmarks, HeldOut, Samples } from "./evaluations.js";
import { Routing } from "./routing.js";
import { Outcome, Proofs, Spec, Warnings } from "./outcome.js";
import { Stages } from "./stages.js";

// Drawing takes longer than events take to come.
const REDRAW_MS = 250;

export function Job({ id }) {
  const path = `/v1/jobs/${encodeURIComponent(id)}`;
  const { job, history, error, again } = useJob(path);
  const report = useReport(path, job?.status === "succeeded");
  useEffect(() => {
    document.title = `${job ? `${job.name} ` : ""}${id} – Sleddog`;
    return () => (document.title = "Sleddog");
  }, [id, job?.name]);
  if (error && !error.isTemporary) return html`<h1>${id}</h1><${Failure} error=${error}><p><a href="#/jobs">All jobs</a></p><//>`;
  if (!job) return html`<h1>${id}</h1><${Loading} what="the job" />`;
  return html`
    <${RunHeader} run=${job} kind="job" path=${path} onActed=${again} />
    <${Stages} job=${job} history=${history} />
    <${Warnings} warnings=${history.warnings} />
    <div class="panels">
      <${Curves} history=${history} job=${job} />
      <div class="side-by-side"><${HeldOut} history=${history} /><${Benchmarks} history=${history} />
        <${Outcome} history=${history} report=${report} job=${job} /></div>
      <${Routing} history=${history} path=${path} />
      <${Samples} history=${history} />
      <${DataReport} manifest=${history.manifest} skipped=${history.skippedRows} />
      <${Proofs} history=${history} />
      <${Log} path=${path} isOver=${isOver(job)} key="log" />
      <${Spec} run=${job} />
    </div>`;
}

// How the job stands, and all that it has told; `history` is one object that grows, and each redraw sees it anew.
function useJob(path) {
  const history = useRef(emptyHistory());
  const [state, setState] = useState({ job: null, error: null });
  const [, redraw] = useState(0);
  const [round, setRound] = useState(0);
  useEffect(() => {
    let timer = null;
    const later = () => (timer ??= setTimeout(() => ((timer = null), redraw((count) => count + 1)), REDRAW_MS));
    const onError = (error) => setState(({ job }) => ({ job, error }));
    const stop = followRun(path, {
      include: ["events", "snapshots"],
      position: () => history.current.lastSequence,
      onEvent: (event) => (fold(history.current, event), later()),
      // a snapshot leaves the spec out, which never changes
      onSnapshot: (run) => setState(({ job }) => ({ job: { ...job, ...run }, error: null })),
      onError,
    });
    getJson(path).then((job) => setState((state) => ({ ...state, job: { ...job, ...state.job, spec: job.spec } })), onError);
    return () => {
      clearTimeout(timer);
      stop();
    };
  }, [path, round]);
  // a job that is resumed has more to tell: its stream had ended
  return { ...state, history: history.current, again: () => setRound((count) => count + 1) };
}

function useReport(path, isThere) {
  const load = (signal) => (isThere ? getJson(`${path}/report`, { signal }) : null);
  return usePolled(load, null, [path, isThere]).data;
}
