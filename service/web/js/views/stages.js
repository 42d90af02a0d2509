// Which stage a job is in, and how far.
import { Facts } from "../parts/panels.js";
import { Bar, isOver } from "../parts/status.js";
import { bytes, counted, decimal, duration, integer, percent, secondsBetween, signedPercent, significant } from "../pure/format.js";
import { STAGES } from "../pure/history.js";
import { fraction, progressWords, taskWords } from "../pure/progress.js";
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
    ${isRunning ? html`<${Bar} done=${done ?? 0} total=${total} label="Progress of ${name}" />` : html`<span class="bar still"></span>`}
    <p class="quiet">${isRunning ? (taskWords(stage.task ?? {}) ?? steps(name, job)) : (stage.reused ? "found done" : "")}</p>
  </li>`;
}

function took(stage, isRunning) {
  if (isRunning) return stage.since ? duration(secondsBetween(stage.since)) : "";
  return stage.state === "finished" ? duration(stage.duration) : "";
}

const steps = (name, { progress }) =>
  name === "train" && progress.step !== null ? `step ${integer(progress.step)} of ${integer(progress.total_steps)}` : "";

// Those of a sweep: the data, once, then trials on one model after the other.
export function SweepStages({ sweep, results }) {
  const { progress } = sweep;
  const found = new Map((results?.stages ?? []).map((stage) => [stage.name, stage]));
  const names = ["prepare", ...(sweep.spec?.stages ?? []).map((stage) => stage.name)];
  const stateOf = (name) => {
    if (name === "prepare") return found.size ? "finished" : progress.stage === "prepare" && !isOver(sweep) ? "running" : "pending";
    return found.get(name)?.status ?? "pending";
  };
  return html`<ol class="stages" aria-label="Stages">${names.map((name) => {
    const state = stateOf(name);
    return html`<li key=${name} class=${state} aria-current=${state === "running" ? "step" : null}>
      <p><span aria-hidden="true">${MARKS[state]}</span> <strong>${name}</strong><span class="unseen">, ${state}</span>
        <span class="value">${found.has(name) ? counted(found.get(name).num_trials, "trial") : ""}</span></p>
      ${state === "running" ? html`<${Bar} ...${fraction(progress)} label="Progress of ${name}" />` : html`<span class="bar still"></span>`}
      <p class="quiet">${state === "running" ? progressWords(sweep) : roundsWords(found.get(name))}</p></li>`;
  })}</ol>`;
}

const roundsWords = (stage) =>
  stage?.best_score_by_round.length
    ? `${counted(stage.best_score_by_round.length, "round")}, best ${signedPercent(stage.best_score_by_round.at(-1))}`
    : "";

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
