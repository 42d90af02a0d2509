// A stage's candidates: where their mixes lie, how they rank, and which to train at full length.
import { Mixes } from "../charts/mixes.js";
import { MixBar, MixLegend } from "../parts/mix.js";
import { Choice } from "../parts/choice.js";
import { Empty, Section } from "../parts/panels.js";
import { Table } from "../parts/table.js";
import { counted, duration, estimateParts, percent, UNKNOWN } from "../pure/format.js";
import { largestShare } from "../pure/simplex.js";
import { leaderboard, marksOf, metricsOf, shortId, shortMetric } from "../pure/sweep.js";
import { html, useState } from "../ui.js";
import { Promote } from "./promote.js";

export function Candidates({ results, categories, path }) {
  const [chosenStage, chooseStage] = useState(null);
  const [onlyBeams, setOnlyBeams] = useState(false);
  const [promoted, promote] = useState(null);
  const withCandidates = results.stages.filter(({ name }) => leaderboard(results, name).length);
  if (!withCandidates.length) return html`<${Section} title="Candidates" wide=${true}><${Empty}>None yet.<//><//>`;
  const stage = withCandidates.find(({ name }) => name === chosenStage) ?? withCandidates.at(-1);
  const most = largestShare(results.candidates.map(({ mixture }) => mixture ?? {}));
  const shown = (name) => leaderboard(results, name, { onlyBeams });
  return html`<${Section} title="Candidates" wide=${true} note="gains over the base mix in the same stage, in %, ± standard error; above 0 is better">
    ${categories.length > 1 && html`<div class="pictures">${withCandidates.map(
      ({ name }) => html`<figure key=${name}><figcaption>${name}</figcaption>
        <${Mixes} candidates=${shown(name)} categories=${categories} most=${most} /></figure>`,
    )}</div><${Legend} isTriangle=${categories.length === 3} />`}
    <div class="choices">
      <${Choice} label="Stage" value=${stage.name} choose=${chooseStage} options=${withCandidates.map(({ name }) => [name, name])} />
      <label><input type="checkbox" checked=${onlyBeams} onChange=${({ target }) => setOnlyBeams(target.checked)} /> Only beams</label>
    </div>
    <${MixLegend} categories=${categories} />
    <${Leaderboard} candidates=${shown(stage.name)} categories=${categories} best=${results.best} promote=${promote} />
    ${promoted && html`<${Promote} candidate=${promoted} path=${path} onClose=${() => promote(null)} />`}
  <//>`;
}

function Legend({ isTriangle }) {
  return html`<ul class="legend score"><li><i class="ramp" aria-hidden="true"></i>score, worst to best</li>
    <li><i class="dot big" aria-hidden="true"></i>${isTriangle ? "beam" : "thick: beam"}</li>
    <li><i class="dot ring" aria-hidden="true"></i>${isTriangle ? "ringed: promoted" : "thickest: promoted"}</li>
    ${isTriangle && html`<li><i class="square" aria-hidden="true"></i>base mix</li><li>— from a beam to what was made of it</li>`}</ul>`;
}

function Leaderboard({ candidates, categories, best, promote }) {
  const metrics = metricsOf(candidates);
  const columns = [
    { title: "#", number: true, cell: (candidate) => candidate.rank ?? UNKNOWN },
    { title: "Candidate", head: true, className: "nowrap", cell: (candidate) => html`${shortId(candidate)}<${Marks} candidate=${candidate} isBest=${candidate.id === best} />` },
    { title: "Mix", cell: (candidate) => html`<${Mix} candidate=${candidate} categories=${categories} />` },
    ...categories.map((name) => ({ title: name, number: true, cell: ({ mixture }) => (mixture ? percent(mixture[name] ?? 0, 0) : UNKNOWN) })),
    { title: "Score", number: true, cell: (candidate) => html`<${Gain} found=${candidate.score} isScore=${true} />` },
    ...metrics.map((name) => ({ title: shortMetric(name), number: true, cell: ({ gains }) => html`<${Gain} found=${gains[name]} />` })),
    { title: "Cost", number: true, hint: "Workers' time", cell: (candidate) => duration(candidate.worker_seconds) },
    { title: "From", className: "nowrap", cell: (candidate) => candidate.parent ?? candidate.role.replaceAll("_", " ") },
    { title: "Full length", cell: (candidate) => html`<button type="button" class="small" onClick=${() => promote(candidate)}>Promote<span class="unseen"> ${shortId(candidate)}</span></button>` },
  ];
  return html`<${Table} caption=${`Leaderboard of ${counted(candidates.length, "candidate")}, the best first`} isFull=${true} columns=${columns}
    rows=${candidates} keyOf=${({ id }) => id} classOf=${({ is_beam, is_promoted }) => (is_beam || is_promoted ? "beam" : "")} />`;
}

function Gain({ found, isScore = false }) {
  const [value, noise] = estimateParts(found);
  return html`<span class=${isScore ? "score" : ""}>${value}</span> <small>${noise}</small>`;
}

function Marks({ candidate, isBest }) {
  const marks = [...(isBest ? ["best"] : []), ...marksOf(candidate)];
  return html`${marks.map((mark) => html` <span key=${mark} class="mark ${mark}">${mark}</span>`)}
    ${candidate.broken.length > 0 && html` <span class="mark broken">breaks ${candidate.broken.map(shortMetric).join(", ")}</span>`}`;
}

function Mix({ candidate, categories }) {
  const others = Object.entries(candidate.fields).map(([name, value]) => `${name} ${value}`);
  if (candidate.left_out) others.push(`without ${candidate.left_out}`);
  return html`<${MixBar} mixture=${candidate.mixture} categories=${categories} isSmall=${true} />
    ${others.length > 0 && html`<span class="quiet nowrap">${others.join(", ")}</span>`}`;
}
