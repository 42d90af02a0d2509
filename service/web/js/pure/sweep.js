// What a sweep's results say, in the order in which the page shows them.

export const categoriesOf = (results) =>
  [...new Set(results.candidates.flatMap((candidate) => Object.keys(candidate.mixture ?? {})))].sort();

// Candidates of a stage, the best first; those without a rank come last.
export function leaderboard(results, stage, { onlyBeams = false } = {}) {
  return results.candidates
    .filter((candidate) => candidate.stage === stage && (!onlyBeams || candidate.is_beam || candidate.is_promoted))
    .sort((one, other) => (one.rank ?? Infinity) - (other.rank ?? Infinity));
}

export const metricsOf = (candidates) => [...new Set(candidates.flatMap(({ gains }) => Object.keys(gains)))].sort();

// `held_out_loss.math` as "math loss".
export function shortMetric(name) {
  const [task, ...rest] = name.split(".");
  return task === "held_out_loss" ? `${rest.join(".") || "mean"} loss` : name;
}

// `proxy-1m-r0-c2` of the stage `proxy-1m` as `r0-c2`.
export const shortId = ({ id, stage }) => (id.startsWith(`${stage}-`) ? id.slice(stage.length + 1) : id);

// Pairs of a candidate and the one it was made from, both of the stage and both with a mix.
export function descents(candidates) {
  const found = new Map(candidates.map((candidate) => [candidate.id, candidate]));
  return candidates
    .filter(({ parent, mixture }) => mixture && found.get(parent)?.mixture)
    .map((child) => ({ child, parent: found.get(child.parent) }));
}

export function marksOf(candidate) {
  const marks = [];
  if (candidate.role === "base") marks.push("base");
  if (candidate.is_promoted) marks.push("promoted");
  else if (candidate.is_beam) marks.push("beam");
  return marks;
}

// From 0, the worst score, to 1, the best; null where nothing has been measured.
export function scoreScale(candidates) {
  const scores = candidates.filter(({ score }) => score).map(({ score }) => score.value);
  const [low, high] = [Math.min(...scores), Math.max(...scores)];
  return ({ score }) => (score ? (high > low ? (score.value - low) / (high - low) : 1) : null);
}
