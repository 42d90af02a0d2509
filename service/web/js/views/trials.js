// The training runs of a sweep.
import { Section } from "../parts/panels.js";
import { Status } from "../parts/status.js";
import { Table } from "../parts/table.js";
import { decimal, duration, integer } from "../pure/format.js";
import { shortMetric } from "../pure/sweep.js";
import { html } from "../ui.js";

export function Trials({ results }) {
  const { trials } = results;
  if (!trials.length) return null;
  const counts = Map.groupBy(trials, ({ status }) => status);
  const note = [...counts].map(([status, found]) => `${found.length} ${status}`).join(", ");
  const metrics = [...new Set(trials.flatMap((trial) => Object.keys(trial.metrics)))].sort();
  const columns = [
    { title: "Trial", head: true, className: "nowrap", cell: (trial) => trial.id },
    { title: "Seed", number: true, cell: (trial) => trial.seed },
    { title: "Status", cell: (trial) => html`<${Status} status=${trial.status} />` },
    { title: "Steps", number: true, cell: (trial) => integer(trial.steps) },
    { title: "Tokens", number: true, cell: (trial) => integer(trial.tokens) },
    { title: "Took", number: true, cell: (trial) => duration(trial.duration_s) },
    ...metrics.map((name) => ({ title: shortMetric(name), number: true, cell: (trial) => decimal(trial.metrics[name]) })),
    ...(trials.some((trial) => trial.reason) ? [{ title: "Why it failed", className: "detail", cell: (trial) => trial.reason }] : []),
  ];
  const hasFailed = counts.has("failed");
  return html`<${Section} title="Trials" note=${note} wide=${true}><details open=${hasFailed}><summary>All ${integer(trials.length)}</summary>
    <${Table} caption="Trials" columns=${columns} rows=${trials} keyOf=${(trial) => trial.id} isFull=${true} /></details><//>`;
}
