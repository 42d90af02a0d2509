// Load of experts, as ratios to an even load: 1 is even. Colours go from a quarter to four times that, in equal ratios, so
// that an expert with half its share looks as far from even as one with twice its share.
import { heat, LEGEND_RATIOS } from "../pure/heat.js";
import { html } from "../ui.js";

const fill = (ratio) => {
  const { side, strength } = heat(ratio);
  return `color-mix(in oklab, var(--heat-${side}) ${Math.round(100 * strength)}%, var(--heat-even))`;
};

// rows: [{name, ratios}]; describe(row, column, ratio): what the pointer is told of a cell; summary: the same in words.
export function Heatmap({ rows, columnsName, rowsName, describe, summary }) {
  const [width, height] = [Math.max(...rows.map((row) => row.ratios.length)), rows.length];
  return html`<div class="heatmap">
    <div class="rows" aria-hidden="true">${rows.map((row) => html`<span key=${row.name}>${row.name}</span>`)}</div>
    <svg role="img" aria-label=${summary} viewBox="0 0 ${width} ${height}" preserveAspectRatio="none"
      style=${{ height: `${Math.min(420, height * Math.max(8, 28 - height))}px` }} shape-rendering="crispEdges">
      ${rows.map((row, y) => row.ratios.map((ratio, x) => html`<rect key=${`${y}-${x}`} x=${x} y=${y} width="1" height="1"
        style=${{ fill: fill(ratio) }}><title>${describe(row, x, ratio)}</title></rect>`))}
    </svg>
    <div class="axes" aria-hidden="true"><span>${rowsName} ↓</span><span>${columnsName} →</span></div>
  </div>`;
}

export function HeatLegend({ ratios = LEGEND_RATIOS }) {
  return html`<p class="heat-legend" aria-hidden="true">${ratios.map(
    (ratio) => html`<span key=${ratio}><i style=${{ background: fill(ratio) }}></i>${ratio}×</span>`,
  )}</p>`;
}
