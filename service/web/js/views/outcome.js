// What a job warned of, what it proves of itself, and what came of it.
import { Facts, Section } from "../parts/panels.js";
import { Table } from "../parts/table.js";
import { bytes, duration, integer, moment, percent, significant, words } from "../pure/format.js";
import { html } from "../ui.js";

export function Proofs({ history }) {
  const proofs = history.proofs.flatMap(({ attempt, step, proofs }) => proofs.map((proof) => ({ attempt, step, ...proof })));
  if (!proofs.length) return null;
  const failed = proofs.filter((proof) => !proof.passed).length;
  const columns = [
    { title: "Proof", head: true, cell: (proof) => words(proof.name) },
    { title: "Outcome", cell: (proof) => html`<span class="status ${proof.passed ? "succeeded" : "failed"}">
        <span aria-hidden="true">${proof.passed ? "✓" : "✕"}</span> ${proof.passed ? "passed" : "failed"}</span>` },
    { title: "Measured", number: true, cell: (proof) => significant(proof.measured) },
    { title: "Tolerance", number: true, cell: (proof) => significant(proof.tolerance) },
    { title: "Step", number: true, cell: (proof) => integer(proof.step) },
    { title: "What it says", className: "detail", cell: (proof) => proof.detail },
  ];
  const note = failed ? `${failed} of ${proofs.length} failed` : `${proofs.length} passed`;
  return html`<${Section} title="Proofs" note=${note} wide=${true}>
    <${Table} caption="Proofs" columns=${columns} rows=${proofs} /><//>`;
}

// What the job warned of while it went on; the newest ones.
export function Warnings({ warnings }) {
  if (!warnings.length) return null;
  const more = warnings.length - KEPT;
  return html`<ul class="warnings" aria-label="Warnings">
    ${warnings.slice(-KEPT).map(({ kind, message, time }) => html`<li key=${time} class="callout warn">
      <strong>${words(kind)}</strong>${" – "}${message}<time datetime=${time} class="quiet">${moment(time)}</time></li>`)}
    ${more > 0 && html`<li class="quiet">and ${more} before them</li>`}</ul>`;
}

const KEPT = 5;
const CHECKPOINT = [
  { title: "Step", head: true, number: true, cell: ({ step }) => integer(step) },
  { title: "Saved", className: "nowrap", cell: ({ time }) => html`<time datetime=${time}>${moment(time)}</time>` },
  { title: "Below checkpoints/", cell: ({ path }) => html`<code class="path">${path}</code>` },
];

export function Outcome({ history, report, job }) {
  const { checkpoints } = history;
  if (!checkpoints.length && !report) return null;
  return html`<${Section} title="What came of it">
    ${report && html`<${Facts} items=${[
      ["Parameters", integer(report.model.num_params)],
      ["of them active", integer(report.model.num_active_params)],
      ["of them trained", integer(report.model.num_trained_params)],
      ["Tokens", integer(report.train.tokens)],
      ["Training", duration(report.train.duration_s)],
      ["Mean tokens/s", integer(report.train.tokens_per_s)],
      report.train.model_flops_utilisation !== null && ["MFU", percent(report.train.model_flops_utilisation)],
      ["Peak memory", bytes(report.train.peak_memory_bytes)],
      ["Restarts", integer(report.train.restarts)],
      report.train.frozen_saving && ["Frozen parts save", `${percent(report.train.frozen_saving.flops_fraction)} of the operations`],
    ]} /><p>Checkpoint <code class="path">${report.export.path}</code><br />
      <span class="quiet">${bytes(report.export.bytes)} in ${integer(report.export.files)} shards, read back bit-identical</span></p>`}
    ${checkpoints.length > 0 && html`<h3>Checkpoints of the training</h3>
      <${Table} caption="Checkpoints of the training, the newest ones" columns=${CHECKPOINT} rows=${checkpoints.slice(-KEPT)} />`}
    <p>Run directory <code class="path">${job.run_url}</code></p><//>`;
}

export function Spec({ run }) {
  if (!run.spec) return null;
  const text = JSON.stringify(run.spec, null, 2);
  return html`<${Section} title="Spec" wide=${true}><details><summary>As accepted, every default filled in</summary>
    <pre class="log" tabindex="0" aria-label="Spec">${text}</pre></details><//>`;
}

