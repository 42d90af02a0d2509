// Which stage a job is in, and how far.
import { Facts } from "../parts/panels.js";
import { Bar, isOver } from "../parts/status.js";
import { bytes, decimal, duration, integer, percent, secondsBetween, significant } from "../pure/format.js";
import { STAGES } from "../pure/history.js";
import { taskWords } from "../pure/progress.js";
import { html } from "../ui.js";

const MARKS = { pending: "○", running: "●", finished: "✓", unfinished: "–" };

export function Stages({ job, history }) {
  return html`<ol class="stages" aria-label="Stages">
      ${STAGES.map((name) => html`<${Stage} key=${name} name=${name} stage=${history.stages[name]} job=${job} />`)}
    </ol>
    ${job.progress.step !== null && html`<${StepFacts} progress=${job.progress} isOver=${isOver(job)} />`}`;
}

function Stage({ name, stage, job }) {
  const state = isOver(job) && stage.state !== "finished" ? "unfinished" : stage.state;
  const isRunning = state === "running";
  const { done, total } = name === "train" ? { done: job.progress.step, total: job.progress.total_steps } : (stage.task ?? {});
  return html`<li class=${state} aria-current=${isRunning ? "step" : null}>
    <p><span aria-hidden="true">${MARKS[state]}</span> <strong>${name}</strong><span class="unseen">, ${state}</span>
      <span class="value">${took(stage, isRunning)}</span></p>
    <${isRunning ? Bar : "span"} done=${done ?? 0} total=${total} label="Progress of ${name}" class="bar still" />
    <p class="quiet">${isRunning ? (taskWords(stage.task ?? {}) ?? steps(name, job)) : (stage.reused ? "found done" : "")}</p>
  </li>`;
}

function took(stage, isRunning) {
  if (isRunning) return stage.since ? duration(secondsBetween(stage.since)) : "";
  return stage.state === "finished" ? duration(stage.duration) : "";
}

const steps = (name, { progress }) =>
  name === "train" && progress.step !== null ? `step ${integer(progress.step)} of ${integer(progress.total_steps)}` : "";

function StepFacts({ progress, isOver }) {
  return html`<${Facts} items=${[
    ["Step", `${integer(progress.step)} / ${integer(progress.total_steps)}`],
    ["Epoch", decimal(progress.epoch, 2)],
    ["Loss", decimal(progress.loss)],
    ["Learning rate", significant(progress.learning_rate)],
    ["Tokens/s", integer(progress.tokens_per_s)],
    ["Balance loss", html`${decimal(progress.balance_loss, 4)} <span class="quiet">floor ${decimal(progress.balance_loss_floor, 4)}</span>`],
    progress.model_flops_utilisation !== null && ["MFU", percent(progress.model_flops_utilisation)],
    ["Memory", bytes(progress.memory_bytes)],
    !isOver && ["Left", duration(progress.eta_s)],
  ]} />`;
}
