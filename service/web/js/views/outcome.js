// What a job proves of itself, what it warned of, and what came of it.
import { Facts, Section } from "../parts/panels.js";
import { Table } from "../parts/table.js";
import { bytes, duration, integer, moment, percent, significant, words } from "../pure/format.js";
import { html } from "../ui.js";

export function Proofs({ history }) {
  const proofs = history.proofs.flatMap(({ attempt, step, proofs }) => proofs.map((proof) => ({ attempt, step, ...proof })));
  if (!proofs.length && !history.warnings.length) return null;
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
  const note = proofs.length ? (failed ? `${failed} of ${proofs.length} proofs failed` : `${proofs.length} proofs passed`) : "";
  return html`<${Section} title="Proofs and warnings" note=${note} wide=${true}>
    ${history.warnings.length > 0 && html`<ul class="warnings">${history.warnings.map(
      ({ kind, message, time }) => html`<li class="callout warn"><strong>${words(kind)}</strong> ${message}
        <time datetime=${time} class="quiet">${moment(time)}</time></li>`,
    )}</ul>`}
    ${proofs.length > 0 && html`<${Table} caption="Proofs" columns=${columns} rows=${proofs} />`}
  <//>`;
}

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
      <ul class="plain">${checkpoints.slice(-5).map(({ step, path, time }) => html`<li key=${path}>step ${integer(step)}
        <code class="path">${path}</code> <time class="quiet" datetime=${time}>${moment(time)}</time></li>`)}</ul>`}
    <p>Run directory <code class="path">${job.run_url}</code></p><//>`;
}

export function Spec({ run }) {
  if (!run.spec) return null;
  const text = JSON.stringify(run.spec, null, 2);
  return html`<${Section} title="Spec" wide=${true}><details><summary>As accepted, every default filled in</summary>
    <pre class="log" tabindex="0" aria-label="Spec">${text}</pre></details><//>`;
}

