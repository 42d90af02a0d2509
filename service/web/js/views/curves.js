// What the steps of the training measured.
import { LineChart } from "../charts/line.js";
import { Empty, Section } from "../parts/panels.js";
import { isOver } from "../parts/status.js";
import { integer, percent } from "../pure/format.js";
import { smoothed } from "../pure/series.js";
import { paletteName } from "../theme.js";
import { html } from "../ui.js";

export function Curves({ history, job }) {
  const { series, categories } = history;
  if (!series.newest) {
    const text = isOver(job) ? "It took no step." : "Curves begin with the first step of the training.";
    return html`<${Section} title="Training" wide=${true}><${Empty}>${text}<//><//>`;
  }
  const steps = series.column((point) => point.step);
  const one = (name, read, more = {}) => ({ name, values: series.column(read), colour: "--series-1", ...more });
  const note = series.stride > 1 ? `every ${series.stride}th of ${integer(series.newest.step)} steps` : "";
  return html`<${Section} title="Training" note=${note} wide=${true}>
    <div class="charts">
      <${LineChart} title="Loss by category" unit="nats per trained token, smoothed" steps=${steps} curves=${losses(series, categories)} />
      <${LineChart} title="Learning rate" steps=${steps} curves=${[one("learning rate", (point) => point.learning_rate)]} />
      <${LineChart} title="Throughput" unit="tokens/s" steps=${steps} format=${integer}
        curves=${[one("tokens/s", (point) => point.tokens_per_s)]} />
      <${LineChart} title="Balance loss" unit="sum over layers" steps=${steps} curves=${[
        one("balance loss", (point) => point.balance_loss),
        one("floor, at perfect balance", (point) => point.balance_loss_floor, { colour: "--quiet", dashed: true }),
      ]} />
      <${LineChart} title="Gradient norm" unit="L2, before clipping" steps=${steps} curves=${gradients(one)} />
      <${LineChart} title="Where a step's time goes" unit="share of the step" steps=${steps}
        format=${(share) => percent(share, 0)} curves=${phases(one)} />
    </div>
  <//>`;
}

// Of one category alone a step's loss jumps, since a batch has few of its rows: the curve is its running mean.
function losses(series, categories) {
  const all = series.column((point) => point.loss);
  const curves = categories.map((name, place) => ({
    name,
    values: smoothed(series.column((point) => point.loss_by_category?.[name])),
    colour: paletteName(place),
  }));
  return [
    { name: "each step", values: all, colour: "--ink", faint: true, unlisted: true },
    ...curves,
    { name: "all", values: smoothed(all), colour: "--ink" },
  ];
}

function gradients(one) {
  return [
    one("all", (point) => point.gradient_norm, { colour: "--ink" }),
    one("dense", (point) => point.gradient_norm_dense, { colour: paletteName(0) }),
    one("experts", (point) => point.gradient_norm_expert, { colour: paletteName(1) }),
  ];
}

const PHASES = [["forward", "forward_s"], ["backward", "backward_s"], ["optimiser", "optimizer_s"], ["data wait", "data_wait_s"]];

function phases(one) {
  return PHASES.map(([name, field], place) =>
    one(name, (point) => (point.step_s && point[field] !== undefined ? point[field] / point.step_s : null), { colour: paletteName(place) }),
  );
}
