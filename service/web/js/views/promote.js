// The job that trains a candidate's mix at full length: shown first, then posted.
import { newKey, post } from "../api.js";
import { Ask } from "../parts/dialog.js";
import { Facts, Failure, Loading } from "../parts/panels.js";
import { counted, percent } from "../pure/format.js";
import { shortId } from "../pure/sweep.js";
import { html, useEffect, useMemo, useState } from "../ui.js";

export function Promote({ candidate, path, onClose }) {
  const [{ spec, error }, setState] = useState({ spec: null, error: null });
  // however often it is pressed, or the answer is lost: one job
  const idempotencyKey = useMemo(newKey, []);
  useEffect(() => {
    post(`${path}/beams/${encodeURIComponent(candidate.id)}/promote`).then(
      (spec) => setState({ spec, error: null }),
      (error) => setState({ spec: null, error }),
    );
  }, []);

  async function start() {
    const job = await post("/v1/jobs", spec, idempotencyKey);
    location.hash = `/jobs/${job.id}`;
  }

  return html`<${Ask} wide=${true} title="Train ${shortId(candidate)} at full length?" yes="Start this job" no="Not now"
      isReady=${spec !== null} act=${start} onClose=${onClose}>
    ${error && html`<${Failure} error=${error} />`}
    ${!spec && !error && html`<${Loading} what="the job" />`}
    ${spec && html`<${Preview} spec=${spec} />`}<//>`;
}

function Preview({ spec }) {
  const { train, data, parallel } = spec;
  const shares = Object.entries(data.mixture ?? {}).map(([name, { share }]) => `${name} ${percent(share, 1)}`);
  return html`<${Facts} items=${[
      ["Name", spec.name],
      ["Model", spec.model.base.name ?? spec.model.base.path ?? spec.model.base.kind],
      ["Mix", shares.join("  ") || "all there is"],
      ["Length", train.max_steps === null ? counted(train.epochs, "epoch") : counted(train.max_steps, "step")],
      ["Workers", parallel.num_workers],
    ]} />
    <details open><summary>The whole spec</summary>
      <pre class="log" tabindex="0" aria-label="Spec of the job">${JSON.stringify(spec, null, 2)}</pre></details>`;
}
