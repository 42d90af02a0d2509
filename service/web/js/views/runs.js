// All jobs, or all sweeps: the newest first, by status.
import { getJson } from "../api.js";
import { followRun, usePolled } from "../live.js";
import { Bar, isOver, Status, STATUSES } from "../parts/status.js";
import { Empty, Failure, Loading } from "../parts/panels.js";
import { Table } from "../parts/table.js";
import { duration, moment, secondsBetween, UNKNOWN } from "../pure/format.js";
import { fraction, progressWords } from "../pure/progress.js";
import { html, useEffect, useState } from "../ui.js";

const PAGE = 50;
const POLL_MS = 5000;
// A browser has six connections to one origin; whatever else runs is asked for every few seconds.
const MAX_STREAMS = 2;

export function Runs({ kind }) {
  const [statuses, setStatuses] = useState([]);
  const [limit, setLimit] = useState(PAGE);
  const query = statuses.map((status) => `&status=${status}`).join("");
  const load = (signal) => getJson(`/v1/${kind}s?limit=${limit}${query}`, { signal });
  const { data, error } = usePolled(load, POLL_MS, [kind, query, limit]);
  const latest = useSnapshots(kind, (data?.data ?? []).filter((run) => run.status === "running").slice(0, MAX_STREAMS));
  const runs = (data?.data ?? []).map((run) => ({ ...run, ...latest[run.id] }));
  return html`
    <div class="heading"><h1>${kind === "job" ? "Jobs" : "Sweeps"}</h1>
      <${Filter} chosen=${statuses} choose=${setStatuses} /></div>
    ${error && !error.isTemporary && html`<${Failure} error=${error} />`}
    ${!data && !error && html`<${Loading} what="${kind}s" />`}
    ${data && !runs.length && html`<${Nothing} kind=${kind} isFiltered=${statuses.length > 0} />`}
    ${runs.length > 0 && html`<${RunTable} kind=${kind} runs=${runs} />`}
    ${data?.has_more && limit < 1000 && html`<p><button type="button" onClick=${() => setLimit(Math.min(1000, limit + PAGE))}>
      Show more</button></p>`}`;
}

// How some runs stand, by id, told by the service whenever that changes.
function useSnapshots(kind, runs) {
  const [latest, setLatest] = useState({});
  const ids = runs.map((run) => run.id).join(" ");
  useEffect(() => {
    const stops = ids.split(" ").filter(Boolean).map((id) =>
      followRun(`/v1/${kind}s/${id}`, {
        include: ["snapshots"],
        position: () => 0,
        onSnapshot: (run) => setLatest((before) => ({ ...before, [id]: run })),
        onError: () => {}, // the list's own asking says so
      }),
    );
    return () => {
      setLatest({});
      stops.forEach((stop) => stop());
    };
  }, [kind, ids]);
  return latest;
}

function Filter({ chosen, choose }) {
  const toggle = (status) => choose(chosen.includes(status) ? chosen.filter((name) => name !== status) : [...chosen, status]);
  return html`<fieldset class="filter"><legend class="unseen">Only these</legend>
    ${STATUSES.map((status) => html`<label key=${status}><input type="checkbox" checked=${chosen.includes(status)}
      onChange=${() => toggle(status)} /><${Status} status=${status} /></label>`)}
  </fieldset>`;
}

function Nothing({ kind, isFiltered }) {
  if (isFiltered) return html`<${Empty}>No ${kind} has such a status.<//>`;
  const command = kind === "job" ? "sleddog submit job.yaml" : "sleddog sweep submit sweep.yaml";
  return html`<${Empty}>There are no ${kind}s yet. Post one: <code>${command}</code><//>`;
}

function RunTable({ kind, runs }) {
  const columns = [
    { title: "Name", head: true, cell: (run) => html`<a href="#/${kind}s/${run.id}">${run.name}</a><span class="id">${run.id}</span>` },
    { title: "Status", cell: (run) => html`<${Status} status=${run.status} />` },
    { title: "Progress", className: "progress", cell: (run) => html`<${Progress} run=${run} />` },
    { title: "Created", className: "nowrap", cell: (run) => html`<time datetime=${run.created_at}>${moment(run.created_at)}</time>` },
    { title: "Took", number: true, cell: (run) => duration(secondsBetween(run.started_at, run.finished_at)) },
    { title: "Starts", number: true, hint: "Times its driver was started", cell: (run) => run.attempt || UNKNOWN },
  ];
  return html`<${Table} caption="${kind}s, the newest first" columns=${columns} rows=${runs} isFull=${true} keyOf=${(run) => run.id} />`;
}

function Progress({ run }) {
  if (run.error) return html`<span class="reason">${run.error.message}</span>`;
  const { done, total } = fraction(run.progress);
  const isMoving = !isOver(run) && run.status !== "queued";
  return html`${isMoving && html`<${Bar} done=${done} total=${total} label="Progress of ${run.name}" />`}
    <span class="words">${progressWords(run)}</span>`;
}
