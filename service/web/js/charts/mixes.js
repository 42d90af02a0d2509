// The mixes of a stage's candidates: points in a triangle, or lines over parallel axes. A line in the triangle leads from a
// beam to a mix that was made from it. The leaderboard has the same in numbers.
import { estimate, percent } from "../pure/format.js";
import { CORNERS, HEIGHT, inTriangle, onAxes, triangleLine } from "../pure/simplex.js";
import { descents, marksOf, scoreScale, shortId } from "../pure/sweep.js";
import { paletteName } from "../theme.js";
import { html } from "../ui.js";

const SIZE = 300;
const MARGIN = 34;

// `most`: the largest share of any picture beside it, so that their axes are the same.
export function Mixes({ candidates, categories, most }) {
  const shown = candidates.filter((candidate) => candidate.mixture).reverse(); // the best is drawn last, on top
  const Picture = categories.length === 3 ? Triangle : Axes;
  return html`<${Picture} candidates=${shown} categories=${categories} most=${most} scale=${scoreScale(shown)} />`;
}

const told = (candidate, categories) =>
  [
    shortId(candidate),
    categories.map((name) => `${name} ${percent(candidate.mixture[name] ?? 0, 0)}`).join(" "),
    `score ${estimate(candidate.score)}`,
    ...marksOf(candidate),
  ].join(", ");

const shade = (share) => ({ color: share === null ? "var(--quiet)" : `color-mix(in oklab, var(--score-high) ${Math.round(100 * share)}%, var(--score-low))` });

const inWords = (candidates, categories) => {
  const best = candidates.at(-1);
  return `Mixes of ${candidates.length} candidates over ${categories.join(", ")}${best ? `; the best: ${told(best, categories)}` : ""}`;
};

function Triangle({ candidates, categories, scale }) {
  const at = (point) => [MARGIN + point[0] * SIZE, MARGIN * 0.8 + point[1] * SIZE];
  const of = ({ mixture }) => at(inTriangle(categories.map((name) => mixture[name] ?? 0)));
  const [left, right, top] = CORNERS.map(at);
  const lines = [0.25, 0.5, 0.75].flatMap((share) => [0, 1, 2].map((place) => triangleLine(place, share).map(at)));
  return html`<svg class="mixes" role="img" aria-label=${inWords(candidates, categories)}
      viewBox="0 0 ${SIZE + 2 * MARGIN} ${SIZE * HEIGHT + 2 * MARGIN}">
    <g class="grid">${lines.map(([from, to], place) => html`<line key=${place} x1=${from[0]} y1=${from[1]} x2=${to[0]} y2=${to[1]} />`)}</g>
    <polygon class="frame" points=${[left, right, top].map((point) => point.join()).join(" ")} />
    <${Corner} name=${categories[0]} place=${0} x=${left[0]} y=${left[1] + 18} anchor="middle" />
    <${Corner} name=${categories[1]} place=${1} x=${right[0]} y=${right[1] + 18} anchor="middle" />
    <${Corner} name=${categories[2]} place=${2} x=${top[0]} y=${top[1] - 10} anchor="middle" />
    <g class="descent">${descents(candidates).map(({ child, parent }) => {
      const [from, to] = [of(parent), of(child)];
      return html`<line key=${child.id} x1=${from[0]} y1=${from[1]} x2=${to[0]} y2=${to[1]} />`;
    })}</g>
    ${candidates.map((candidate) => html`<${Point} key=${candidate.id} candidate=${candidate} at=${of(candidate)}
      style=${shade(scale(candidate))} title=${told(candidate, categories)} />`)}
  </svg>`;
}

function Point({ candidate, at: [x, y], style, title }) {
  const radius = candidate.is_beam || candidate.is_promoted ? 7 : 4.5;
  const className = `point ${marksOf(candidate).join(" ")}`;
  return html`<g class=${className} style=${style}><title>${title}</title>${
    candidate.role === "base"
      ? html`<rect x=${x - radius} y=${y - radius} width=${2 * radius} height=${2 * radius} />`
      : html`<circle cx=${x} cy=${y} r=${radius} />`
  }</g>`;
}

function Corner({ name, place, x, y, anchor }) {
  return html`<text x=${x} y=${y} text-anchor=${anchor} style=${{ fill: `var(${paletteName(place)})` }}>${name}</text>`;
}

const [AXES_WIDTH, AXES_HEIGHT] = [460, 240];

function Axes({ candidates, categories, most, scale }) {
  const at = ([x, y]) => [MARGIN + x * AXES_WIDTH, MARGIN + y * AXES_HEIGHT];
  const of = ({ mixture }) => onAxes(categories.map((name) => (mixture[name] ?? 0) / most)).map(at);
  const ends = onAxes(categories.map(() => 1)).map(at);
  return html`<svg class="mixes" role="img" aria-label=${inWords(candidates, categories)}
      viewBox="-24 0 ${AXES_WIDTH + 2 * MARGIN + 48} ${AXES_HEIGHT + 2 * MARGIN}">
    <g class="grid">${[0, 0.5, 1].map((share) => {
      const [y, x] = [at([0, 1 - share])[1], at([0, 0])[0]];
      return html`<line key=${share} x1=${x} y1=${y} x2=${x + AXES_WIDTH} y2=${y} />
        <text class="tick" x=${x - 8} y=${y + 3} text-anchor="end">${percent(share * most, 0)}</text>`;
    })}</g>
    ${ends.map(([x, y], place) => html`<line key=${place} class="frame" x1=${x} y1=${y} x2=${x} y2=${y + AXES_HEIGHT} />
      <${Corner} name=${categories[place]} place=${place} x=${x} y=${y + AXES_HEIGHT + 20} anchor="middle" />`)}
    ${candidates.map((candidate) => html`<g key=${candidate.id} class="mix-line ${marksOf(candidate).join(" ")}"
      style=${shade(scale(candidate))}><title>${told(candidate, categories)}</title>
      <polyline points=${of(candidate).map((point) => point.join()).join(" ")} />
      ${of(candidate).map(([x, y], place) => html`<circle key=${place} cx=${x} cy=${y} r="3" />`)}</g>`)}
  </svg>`;
}
