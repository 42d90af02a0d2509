// What can be done with a job or a sweep, and what to do about one that failed.

const CANCEL = {
  verb: "cancel", title: "Cancel", danger: true, no: "Let it run",
  consequence: "Its processes end within seconds. What it has written stays in its run directory.",
}; // prettier-ignore
const RESUME = {
  verb: "resume", title: "Resume", danger: false, no: "Leave it",
  consequence: "It goes on from its last checkpoint, as the same job.",
}; // prettier-ignore
const RETRY = {
  verb: "retry", title: "Retry", danger: false, no: "Leave it",
  consequence: "A new job runs the same spec, from the beginning.",
}; // prettier-ignore

const ACTIONS = {
  queued: [CANCEL], submitting: [CANCEL], running: [CANCEL],
  cancelled: [RESUME, RETRY], failed: [RESUME, RETRY], succeeded: [RETRY],
}; // prettier-ignore

const OF_SWEEPS = {
  cancel: { consequence: "Its trials end within seconds. Finished ones stay." },
  resume: { consequence: "It goes on as the same sweep; finished trials stay." },
};

export function actionsOf(status, kind) {
  return (ACTIONS[status] ?? []).map((action) => (kind === "sweep" ? { ...action, ...OF_SWEEPS[action.verb] } : action));
}

const BY_CODE = {
  bad_row: "Mend the row or, to leave such rows out, set data.on_bad_row to skip.",
  empty_data: "Look at what the data report says was removed, and give more or other sources.",
  placement_timeout: "Ask for fewer workers, or wait until the cluster has room (parallel.placement_timeout_s).",
  worker_lost: "Workers died more often than parallel.max_worker_failures allows; the log's end says of what.",
  non_finite_loss: "Try a lower train.learning_rate, or train.gradient_clip_norm.",
  trials_failed: "The trials below say why each failed.",
};
const BY_FAULT = {
  user: "Change the spec, and post it anew.",
  data: "Mend the data, and post it anew.",
  infrastructure: "The spec is not to blame; the log's end says what the cluster lacked. Run it again once that is mended.",
  numerics: "The figures below say what was measured; the log has more.",
};

export const remedy = ({ code, fault }) => BY_CODE[code] ?? BY_FAULT[fault] ?? "The log below says more.";
