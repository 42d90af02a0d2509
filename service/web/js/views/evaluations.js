// What was measured on rows that are not trained on, before, during and after.
import { Section } from "../parts/panels.js";
import { Status } from "../parts/status.js";
import { Table } from "../parts/table.js";
import { decimal, integer, signedPercent, UNKNOWN, words } from "../pure/format.js";
import { answers, inOrder } from "../pure/history.js";
import { html } from "../ui.js";

export function HeldOut({ history }) {
  const found = inOrder(history.heldOut);
  if (!found.length) return null;
  const [first, last] = [found[0], found.at(-1)];
  const examples = Object.fromEntries((history.manifest?.held_out ?? []).map((line) => [line.category, line.examples]));
  const columns = [
    { title: "Category", head: true, cell: (name) => name },
    { title: "Examples", number: true, cell: (name) => integer(examples[name]) },
    ...found.map(({ when, loss }) => ({ title: words(when), number: true, cell: (name) => decimal(loss[name]) })),
    found.length > 1 && {
      title: "Change",
      number: true,
      cell: (name) => signedPercent((last.loss[name] - first.loss[name]) / first.loss[name]),
    },
  ].filter(Boolean);
  return html`<${Section} title="Held-out loss" note="nats per token">
    <${Table} caption="Held-out loss by category" columns=${columns} rows=${Object.keys(first.loss).sort()} /><//>`;
}

export function Benchmarks({ history }) {
  const lines = inOrder(history.tasks).flatMap(({ task, when, status, reason, metrics }) => {
    if (status === "failed") return [{ task, when, status, reason }];
    return Object.entries(metrics ?? {}).map(([name, metric]) => ({ task, when, status, name, ...metric }));
  });
  if (!lines.length) return null;
  const columns = [
    { title: "Task", head: true, cell: (line) => line.task },
    { title: "When", cell: (line) => words(line.when) },
    { title: "Metric", cell: (line) => (line.status === "failed" ? html`<${Status} status="failed" />` : words(line.name)) },
    { title: "n", number: true, cell: (line) => integer(line.n) },
    { title: "Score", number: true, cell: score },
  ];
  return html`<${Section} title="Benchmarks" note="mean ± standard error">
    <${Table} caption="Benchmarks" columns=${columns} rows=${lines} /><//>`;
}

function score(line) {
  if (line.status === "failed") return line.reason;
  if (line.score === undefined) return UNKNOWN;
  return decimal(line.score) + (line.standard_error === null ? "" : ` ± ${decimal(line.standard_error)}`);
}

export function Samples({ history }) {
  const found = answers(history.samples);
  if (!found.length) return null;
  return html`<${Section} title="Answers" note="greedily, to the prompts of the spec" wide=${true}>
    <div class="samples">${found.map(
      ({ prompt, completions }) => html`<article key=${prompt}><h3>${prompt}</h3>
        <dl>${completions.map(([when, text]) => html`<div key=${when}><dt>${words(when)}</dt><dd>${text}</dd></div>`)}</dl>
      </article>`,
    )}</div><//>`;
}
