// Curves over the steps of a run, drawn by uPlot; all of a page share the pointer. Beside the picture the same is there in
// words and, folded up, as a table.
import uPlot from "../../vendor/uplot.js";
import { Table } from "../parts/table.js";
import { significant } from "../pure/format.js";
import { spread } from "../pure/series.js";
import { colour, onTheme } from "../theme.js";
import { html, useEffect, useRef, useState } from "../ui.js";

const HEIGHT = 168;
const ROWS_IN_TABLE = 12;
const CURSOR = uPlot.sync("steps");

// curves: [{name, values, colour (custom property), dashed, faint, unlisted}] over `steps`; format: of a value.
export function LineChart({ title, unit, steps, curves, format = significant }) {
  const box = useRef();
  const plot = useRef(null);
  const [cursor, setCursor] = useState(null);
  const shape = curves.map((curve) => [curve.name, curve.colour, curve.dashed, curve.faint].join()).join(";");
  const data = [steps, ...curves.map((curve) => curve.values)];
  const latest = useRef(data); // what a change of colours draws anew
  latest.current = data;

  useEffect(() => {
    const element = box.current; // the reference is gone before this effect is
    const draw = () => {
      plot.current?.destroy();
      plot.current = new uPlot(options(curves, format, element.clientWidth, setCursor), latest.current, element);
    };
    const resize = new ResizeObserver(() => {
      const width = element.clientWidth;
      if (plot.current && width && width !== plot.current.width) plot.current.setSize({ width, height: HEIGHT });
    });
    draw();
    resize.observe(element);
    const stop = onTheme(draw);
    return () => {
      stop();
      resize.disconnect();
      plot.current?.destroy();
      plot.current = null;
    };
  }, [shape]);
  useEffect(() => plot.current?.setData(data), [steps, ...curves.map((curve) => curve.values)]);

  const place = cursor ?? steps.length - 1;
  // a category that the newest step has no row of shows what was known last
  const shown = ({ values }) => (cursor === null ? values.findLast((value) => value !== null) : values[cursor]);
  const listed = curves.filter((curve) => !curve.unlisted);
  return html`<figure class="chart">
    <figcaption><strong>${title}</strong>${unit && html` <span class="unit">${unit}</span>`}
      <span class="at">${cursor === null ? "" : `step ${steps[place]}`}</span></figcaption>
    <div class="plot" ref=${box} role="img" aria-label=${inWords(title, steps, listed, format)}></div>
    <ul class="legend">${listed.map(
      (curve) => html`<li key=${curve.name}><${Swatch} name=${curve.colour} dashed=${curve.dashed} />${curve.name}
        <span class="value">${format(shown(curve))}</span></li>`,
    )}</ul>
    <details><summary>Numbers<span class="unseen"> of ${title}</span></summary>
      <${Numbers} title=${title} steps=${steps} curves=${listed} format=${format} /></details>
  </figure>`;
}

export function Swatch({ name, dashed = false }) {
  return html`<i class="swatch ${dashed ? "dashed" : ""}" style=${{ color: `var(${name})` }} aria-hidden="true"></i>`;
}

function Numbers({ title, steps, curves, format }) {
  const rows = spread(steps.map((_, place) => place), ROWS_IN_TABLE);
  const columns = [
    { title: "step", head: true, number: true, cell: (place) => steps[place] },
    ...curves.map((curve) => ({ title: curve.name, number: true, cell: (place) => format(curve.values[place]) })),
  ];
  return html`<${Table} caption=${`${title}, some of ${steps.length} steps`} columns=${columns} rows=${rows} />`;
}

function inWords(title, steps, curves, format) {
  if (!steps.length) return `${title}: nothing yet`;
  const told = curves.map(({ name, values }) => {
    const known = values.filter((value) => value !== null);
    return `${name} from ${format(known[0])} to ${format(known.at(-1))}`;
  });
  return `${title}, steps ${steps[0]} to ${steps.at(-1)}: ${told.join(", ")}`;
}

function options(curves, format, width, setCursor) {
  const [ink, grid] = [colour("--quiet"), colour("--grid")];
  const font = `11px ${getComputedStyle(document.body).fontFamily}`;
  const axis = { stroke: ink, font, grid: { stroke: grid, width: 1 }, ticks: { show: false } };
  return {
    width,
    height: HEIGHT,
    padding: [8, 16, 0, 0],
    legend: { show: false },
    cursor: { sync: { key: CURSOR.key }, drag: { x: false, y: false }, points: { size: 6 }, y: false },
    scales: { x: { time: false } },
    axes: [
      { ...axis, size: 24, gap: 3, space: 56, grid: { show: false } },
      { ...axis, size: 52, gap: 6, space: 32, values: (_, ticks) => ticks.map((tick) => format(tick)) },
    ],
    series: [{}, ...curves.map(line)],
    hooks: { setCursor: [({ cursor: { idx } }) => setCursor(idx ?? null)] },
  };
}

function line(curve) {
  return {
    label: curve.name,
    stroke: colour(curve.colour),
    alpha: curve.faint ? 0.28 : 1,
    width: curve.faint ? 1 : 1.6,
    dash: curve.dashed ? [5, 4] : undefined,
    spanGaps: true,
    points: { show: false },
  };
}
