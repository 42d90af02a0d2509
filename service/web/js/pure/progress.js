// How a job or a sweep stands, in a line.
import { decimal, duration, integer, signedPercent, words } from "./format.js";

// {done, total} of what it is at; total is null where it is not known.
export function fraction(progress) {
  if (progress.trials_planned) return { done: progress.trials_ended ?? 0, total: progress.trials_planned };
  if (progress.stage === "train" && progress.total_steps) return { done: progress.step ?? 0, total: progress.total_steps };
  return { done: progress.done ?? 0, total: progress.total ?? null };
}

export function progressWords(run) {
  const { progress, status } = run;
  if (status === "queued") return run.queue_position ? `number ${run.queue_position} in the queue` : "waits";
  if ("trials_ended" in progress) return sweepWords(progress, status);
  if (status === "succeeded") return joined(stepWords(progress));
  if (progress.stage === "train" && progress.step !== null) {
    return joined(["train", ...stepWords(progress), rate(progress), eta(progress)]);
  }
  return progress.stage ? joined([progress.stage, taskWords(progress), eta(progress)]) : "";
}

function sweepWords(progress, status) {
  const round = progress.round !== null && status === "running" ? `round ${progress.round + 1}` : null;
  const trials = progress.trials_planned ? `${progress.trials_ended}/${progress.trials_planned} trials` : null;
  const best = progress.best ? `best ${signedPercent(progress.best_score)}` : null;
  return joined([status === "running" ? progress.stage : null, taskWords(progress), round, trials, best]);
}

function stepWords(progress) {
  if (progress.step === null) return [];
  const loss = progress.loss === null ? null : `loss ${decimal(progress.loss)}`;
  return [`step ${integer(progress.step)}/${integer(progress.total_steps)}`, loss];
}

export function taskWords({ task, done, total, unit }) {
  if (!task) return null;
  return `${words(task)} ${integer(done)}${total === null ? "" : `/${integer(total)}`} ${unit ?? ""}`.trim();
}

const rate = ({ tokens_per_s }) => (tokens_per_s === null ? null : `${integer(tokens_per_s)} tokens/s`);
const eta = ({ eta_s }) => (eta_s ? `${duration(eta_s)} left` : null);
const joined = (parts) => parts.filter(Boolean).join("  ·  ");
