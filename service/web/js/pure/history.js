// What a job's events say, taken together. `service/spec/event.py` lists them.
import { Series } from "./series.js";

export const STAGES = ["prepare", "train", "evaluate", "export"];

export function emptyHistory() {
  return {
    lastSequence: 0,
    stages: Object.fromEntries(STAGES.map((name) => [name, { state: "pending" }])),
    series: new Series(),
    categories: [],
    manifest: null,
    skippedRows: null,
    started: null,
    proofs: [],
    warnings: [],
    heldOut: new Map(),
    routing: new Map(),
    samples: new Map(),
    tasks: new Map(),
    checkpoints: [],
    trials: new Map(),
  };
}

// Takes in an event; one that was seen before changes nothing. `history` is changed in place: it grows to thousands of steps.
export function fold(history, event) {
  if (event.sequence <= history.lastSequence) return;
  history.lastSequence = event.sequence;
  TAKE[event.type]?.(history, event.data, event);
}

const TAKE = {
  "job.started": (history) => {
    for (const stage of Object.values(history.stages)) if (stage.state === "running") stage.state = "pending";
  },
  "stage.started": (history, _data, { stage, time }) => {
    history.stages[stage] = { ...history.stages[stage], state: "running", since: time };
  },
  "stage.progress": (history, data, { stage }) => {
    history.stages[stage] = { ...history.stages[stage], state: "running", task: data };
  },
  "stage.finished": (history, data, { stage }) => {
    const before = history.stages[stage];
    // a restart finds the stage done, and its own time says nothing
    const duration = data.reused && before?.duration ? before.duration : data.duration_s;
    history.stages[stage] = { state: "finished", duration, reused: data.reused };
    if (stage === "prepare") history.manifest = data.summary;
  },
  "rows.skipped": (history, data) => (history.skippedRows = data),
  "train.started": (history, data) => (history.started = data),
  "train.proofs": (history, data, { attempt }) => history.proofs.push({ attempt, ...data }),
  "train.step": (history, data) => {
    for (const name of Object.keys(data.loss_by_category ?? {})) {
      if (!history.categories.includes(name)) history.categories = [...history.categories, name].sort();
    }
    history.series.add(data);
  },
  "job.warning": (history, data, { message, time }) => history.warnings.push({ kind: data.kind, message, time }),
  "checkpoint.saved": (history, data, { time }) => history.checkpoints.push({ ...data, time }),
  "eval.held_out": (history, data) => {
    for (const name of Object.keys(data.loss)) {
      if (!history.categories.includes(name)) history.categories = [...history.categories, name].sort();
    }
    history.heldOut.set(data.when, data);
  },
  "eval.routing": (history, data) => history.routing.set(data.when, data),
  "eval.samples": (history, data) => history.samples.set(data.when, data),
  "eval.task": (history, data) => history.tasks.set(`${data.task} ${data.when}`, data),
};

// Prompts with what was answered at each evaluation: [{prompt, completions: [[when, text], …]}].
export function answers(samples) {
  const prompts = new Map();
  for (const { when, samples: found } of samples.values()) {
    for (const { prompt, completion } of found) {
      if (!prompts.has(prompt)) prompts.set(prompt, []);
      prompts.get(prompt).push([when, completion]);
    }
  }
  return [...prompts].map(([prompt, completions]) => ({ prompt, completions }));
}

// Evaluations in order of their step: before first, after last.
export function inOrder(evaluations) {
  const place = ({ when, step }) => (when === "before" ? -1 : when === "after" ? Infinity : step);
  return [...evaluations.values()].sort((one, other) => place(one) - place(other));
}
