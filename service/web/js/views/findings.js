// What a sweep found, in sentences, and how far its stages agree.
import { Facts, Section } from "../parts/panels.js";
import { Table } from "../parts/table.js";
import { counted, decimal, duration, estimate, integer, signedPercent, UNKNOWN } from "../pure/format.js";
import { html } from "../ui.js";

export function Findings({ results }) {
  return html`<div class="side-by-side">
    ${results.verdict.length > 0 && html`<${Section} title="Verdict"><ul class="sentences">${results.verdict.map(
      (sentence) => html`<li key=${sentence}>${sentence}</li>`,
    )}</ul><//>`}
    <${Section} title="Stages and cost">
      <${Facts} items=${[
        ["Trials", integer(results.trials.length)],
        ["Workers' time", duration(results.worker_seconds)],
        ["Data, once", duration(results.prepare_seconds)],
      ]} />
      <${StageTable} stages=${results.stages} />
      <${Agreements} agreements=${results.agreements} />
      <${Contributions} found=${results.contributions} />
    <//></div>`;
}

const ENDED_BY = {
  rounds: "its rounds were used up", no_gain: "two rounds brought no gain, or one while none was expected", max_trials: "another round would exceed max_trials",
  single_round: "it has a single round", exhausted: "nothing was left to try", baseline_failed: "no trial of the base mix finished",
}; // prettier-ignore

function StageTable({ stages }) {
  const columns = [
    { title: "Stage", head: true, cell: (stage) => stage.name },
    { title: "trials", number: true, cell: (stage) => integer(stage.num_trials) },
    { title: "noise", number: true, hint: "Standard deviation of one trial's score between seeds", cell: (stage) => (stage.noise === null ? UNKNOWN : `${decimal(100 * stage.noise, 2)} %`) },
    { title: "best by round", cell: (stage) => stage.best_score_by_round.map((score) => signedPercent(score)).join("  ") || UNKNOWN },
    { title: "ended, for", className: "detail", cell: (stage) => (stage.ended_by ? ENDED_BY[stage.ended_by] : stage.status) },
  ];
  return html`<${Table} caption="Stages" columns=${columns} rows=${stages} />`;
}

function Agreements({ agreements }) {
  if (!agreements.length) return null;
  const columns = [
    { title: "Ranking alike", head: true, cell: ({ first, second }) => `${first} and ${second}` },
    { title: "candidates", number: true, cell: (line) => integer(line.num_candidates) },
    { title: "rank correlation", number: true, hint: "Spearman's", cell: (line) => (line.spearman === null ? "too few or too alike" : decimal(line.spearman, 2)) },
    { title: "by chance", number: true, hint: "Share of all orders that agree as well", cell: (line) => (typeof line.chance === "number" ? `${decimal(100 * line.chance, 1)} %` : UNKNOWN) },
    { title: "best one", cell: (line) => (line.same_best ? "the same" : "another") },
  ];
  return html`<h3>Do the stages agree?</h3><${Table} caption="Agreement of stages" columns=${columns} rows=${agreements} />`;
}

function Contributions({ found }) {
  const rows = Object.entries(found ?? {});
  if (!rows.length) return null;
  const columns = [
    { title: "Source", head: true, cell: ([name]) => name },
    { title: "what the score loses without it", number: true, cell: ([, value]) => estimate(value, 2) },
  ];
  return html`<h3>${counted(rows.length, "source")}, each left out in turn</h3>
    <${Table} caption="Contributions of the sources" columns=${columns} rows=${rows} />`;
}
