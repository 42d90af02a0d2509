// Which experts take the tokens: while it trains by layer, and at each evaluation by layer and expert.
import { getJson } from "../api.js";
import { Heatmap, HeatLegend } from "../charts/heatmap.js";
import { usePolled } from "../live.js";
import { Choice } from "../parts/choice.js";
import { Empty, Loading, Section } from "../parts/panels.js";
import { Table } from "../parts/table.js";
import { decimal, integer, percent, significant, UNKNOWN, words } from "../pure/format.js";
import { ratios, sum } from "../pure/heat.js";
import { inOrder } from "../pure/history.js";
import { spread } from "../pure/series.js";
import { html, useState } from "../ui.js";

const COLUMNS = 96;
const ALL = "";

export function Routing({ history, path }) {
  const evaluations = inOrder(history.routing);
  if (!evaluations.length && !history.series.newest) return null;
  return html`<${Section} title="Experts" note="load of each, an even one is 1×" wide=${true}>
    <${HeatLegend} />
    <div class="columns">
      <div><h3>Held-out tokens, by layer and expert</h3><${ByExpert} evaluations=${evaluations} path=${path} /></div>
      <div><h3>The busiest expert of each layer, while it trains</h3><${OverSteps} history=${history} /></div>
    </div>
    <div class="columns">
      <div><${Summary} evaluations=${evaluations} /></div>
      <div><${Specialised} evaluation=${evaluations.at(-1)} /></div>
    </div>
  <//>`;
}

function ByExpert({ evaluations, path }) {
  const [chosenWhen, chooseWhen] = useState(null);
  const [category, chooseCategory] = useState(ALL);
  const chosen = evaluations.find(({ when }) => when === chosenWhen) ?? evaluations.at(-1);
  const load = (signal) => (chosen ? getJson(`${path}/artifacts/${chosen.path}`, { signal }) : null);
  const { data, error } = usePolled(load, null, [`${path} ${chosen?.path}`]);
  if (!chosen) return html`<${Empty}>It is measured at each evaluation.<//>`;
  const isMissing = error && !error.isTemporary;
  const names = Object.keys(data?.categories ?? {}).sort();
  return html`<div class="choices">
      <${Choice} label="Evaluation" value=${chosen.when} choose=${chooseWhen} options=${evaluations.map((one) => [one.when, words(one.when)])} />
      <${Choice} label="Tokens of" value=${category} choose=${chooseCategory}
        options=${[[ALL, "all categories"], ...names.map((name) => [name, name])]} />
    </div>
    ${isMissing && html`<${Empty}>${error.message}<//>`}
    ${!data && !isMissing && html`<${Loading} what="the figures" />`}
    ${data && html`<${Loads} figures=${data} names=${category === ALL ? names : [category]} />`}`;
}

function Loads({ figures, names }) {
  if (!names.length) return html`<${Empty}>No held-out token was routed.<//>`;
  const copies = sum(names.map((name) => figures.categories[name].copies_per_layer_and_expert));
  const rows = ratios(copies).map((layer, place) => ({ name: place, ratios: layer, copies: copies[place] }));
  const busiest = (row) => row.ratios.indexOf(Math.max(...row.ratios));
  const columns = [
    { title: "Layer", head: true, number: true, cell: (row) => row.name },
    { title: "Busiest expert", number: true, cell: (row) => busiest(row) },
    { title: "its load", number: true, cell: (row) => `${decimal(Math.max(...row.ratios), 2)}×` },
    { title: "least load", number: true, cell: (row) => `${decimal(Math.min(...row.ratios), 2)}×` },
    { title: "without tokens", number: true, cell: (row) => row.copies.filter((count) => !count).length },
  ];
  const worst = Math.max(...rows.flatMap((row) => row.ratios));
  const summary = `Load of ${figures.num_experts} experts in ${rows.length} layers; the busiest has ${decimal(worst, 2)} times an even load`;
  return html`<${Heatmap} rows=${rows} rowsName="layers" columnsName="experts" summary=${summary}
      describe=${(row, x, ratio) => `layer ${row.name}, expert ${x}: ${decimal(ratio, 2)}×, ${integer(row.copies[x])} copies`} />
    <details><summary>Numbers<span class="unseen"> of the load by layer</span></summary>
      <${Table} caption="Load by layer" columns=${columns} rows=${rows} /></details>`;
}

function OverSteps({ history }) {
  const points = spread(history.series.rows(), COLUMNS).filter((point) => point.load_max_over_mean_per_layer);
  if (!points.length) return html`<${Empty}>It begins with the first step.<//>`;
  const layers = points.at(-1).load_max_over_mean_per_layer.length;
  const rows = Array.from({ length: layers }, (_, layer) => ({
    name: layer,
    ratios: points.map((point) => point.load_max_over_mean_per_layer[layer]),
  }));
  const columns = [
    { title: "Layer", head: true, number: true, cell: (row) => row.name },
    { title: "first step", number: true, cell: (row) => `${decimal(row.ratios[0], 2)}×` },
    { title: "last step", number: true, cell: (row) => `${decimal(row.ratios.at(-1), 2)}×` },
    { title: "balance loss", number: true, cell: (row) => decimal(points.at(-1).balance_loss_per_layer?.[row.name], 5) },
    { title: "router entropy", number: true, cell: (row) => decimal(points.at(-1).router_entropy_per_layer?.[row.name], 2) },
    { title: "without tokens", number: true, cell: (row) => integer(points.at(-1).dead_experts_per_layer?.[row.name]) },
  ];
  const summary = `Load of the busiest expert in ${layers} layers over steps ${points[0].step} to ${points.at(-1).step}`;
  return html`<${Heatmap} rows=${rows} rowsName="layers" columnsName="steps" summary=${summary}
      describe=${(row, x, ratio) => `layer ${row.name}, step ${points[x].step}: ${decimal(ratio, 2)}×`} />
    <details><summary>Numbers<span class="unseen"> of the busiest experts</span></summary>
      <${Table} caption="Busiest expert by layer" columns=${columns} rows=${rows} /></details>`;
}

// The layers whose experts tell most of the category, and of each category the expert that does: its share, and its lift.
function Specialised({ evaluation }) {
  const rows = evaluation?.most_specialised ?? [];
  if (!rows.length) return null;
  const own = ([first]) => (first ? `${first.expert} (${percent(first.share, 0)}, ${decimal(first.lift, 1)}×)` : UNKNOWN);
  const columns = [
    { title: "Layer", head: true, number: true, cell: (row) => row.layer },
    { title: "0 to 1", number: true, hint: "How much an expert tells of the category", cell: (row) => decimal(row.specialisation) },
    ...Object.keys(rows[0].experts).sort().map((name) => ({ title: name, number: true, cell: (row) => own(row.experts[name] ?? []) })),
  ];
  return html`<h3>Most specialised layers, by chance ${significant(evaluation.specialisation_by_chance)}</h3>
    <${Table} caption="Most specialised layers: expert of its own, share of the category's copies, lift" columns=${columns} rows=${rows} />`;
}

// By category, the first evaluation beside the last.
function Summary({ evaluations }) {
  if (!evaluations.length) return null;
  const [first, last] = [evaluations[0], evaluations.at(-1)];
  const rows = Object.keys(last.categories).sort();
  const both = (field, digits) => (name) => {
    const now = decimal(last.categories[name][field], digits);
    return first === last ? now : `${decimal(first.categories[name]?.[field], digits)} → ${now}`;
  };
  const columns = [
    { title: "Category", head: true, cell: (name) => name },
    { title: `in even use, of ${last.num_experts}`, number: true, hint: "Effective experts: as many in even use would have the same entropy", cell: both("effective_experts", 2) },
    { title: "busiest / mean", number: true, cell: both("max_over_mean", 2) },
    { title: "unused", number: true, cell: both("unused_experts", 1) },
    { title: "load drift", number: true, hint: "Share of token copies that would have to move to have the base model's load", cell: (name) => percent(last.categories[name].load_drift) },
    { title: "same experts", number: true, hint: "Share of a token's experts that were its experts in the base model", cell: (name) => percent(last.categories[name].same_experts) },
  ];
  return html`<h3>Means over the layers</h3>
    <${Table} caption="Routing by category, means over the layers" columns=${columns} rows=${rows} />`;
}
