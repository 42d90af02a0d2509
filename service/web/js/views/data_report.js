// What came in, what became of it, and the mix that is trained on.
import { Facts, Section } from "../parts/panels.js";
import { MixBar } from "../parts/mix.js";
import { Table } from "../parts/table.js";
import { integer, percent, UNKNOWN, words } from "../pure/format.js";
import { html } from "../ui.js";

const ALWAYS = ["rows_read", "rows_rejected", "exact_duplicates", "near_duplicates", "rows_kept"];
const COUNTS = {
  rows_read: "rows", further_threads: "more threads", rows_rejected: "malformed", rows_filtered: "filtered",
  rows_contaminated: "contaminated", rows_over_cap: "over cap", exact_duplicates: "exact dup.",
  near_duplicates: "near dup.", rows_kept: "kept",
}; // prettier-ignore
const FIT = {
  truncated: "truncated", split: "split", pieces: "into pieces", exchanges_too_long: "exchanges too long",
  too_long: "dropped", no_trained_token: "train nothing",
}; // prettier-ignore
const ROWS_SHOWN = 8;

export function DataReport({ manifest, skipped }) {
  if (!manifest) return null;
  const { packing } = manifest;
  const categories = manifest.mixture.map((line) => line.category);
  const shares = Object.fromEntries(manifest.mixture.map((line) => [line.category, line.fraction]));
  return html`<${Section} title="Data" wide=${true}>
    <div class="columns">
      <div><h3>What came in</h3><${Sources} sources=${manifest.sources} /></div>
      <div><h3>The mix, by ${manifest.mixture_by}</h3><${MixBar} mixture=${shares} categories=${categories} />
        <${Mixture} lines=${manifest.mixture} /></div>
    </div>
    <${Facts} items=${[
      ["Conversations", integer(packing.documents)],
      ["Packed rows", integer(packing.rows)],
      ["Least possible", integer(packing.bound_rows)],
      ["Tokens in a row", integer(packing.sequence_length)],
      ["Fill", percent(packing.fill, 2)],
      ["Trained tokens", percent(packing.trained_fraction)],
    ]} />
    <${Unfit} lines=${manifest.fit} />
    ${skipped && html`<${Rows} title="Skipped rows" rows=${skipped.rows} count=${skipped.count} path=${skipped.path} />`}
    ${manifest.unfit_rows?.length > 0 && html`<${Rows} title="Conversations left out" rows=${manifest.unfit_rows} path=${manifest.unfit_rows_url} />`}
    <${Ledger} lines=${manifest.accounting} />
  <//>`;
}

function Sources({ sources }) {
  const counts = Object.keys(COUNTS).filter((name) => ALWAYS.includes(name) || sources.some((source) => source[name]));
  const columns = [
    { title: "Source", head: true, cell: (source) => source.name },
    { title: "Category", cell: (source) => source.category },
    ...counts.map((name) => ({ title: COUNTS[name], number: true, cell: (source) => integer(source[name]) })),
  ];
  return html`<${Table} caption="Rows by source" columns=${columns} rows=${sources} />`;
}

function Mixture({ lines }) {
  const columns = [
    { title: "Category", head: true, cell: (line) => line.category },
    { title: "asked", number: true, cell: (line) => (line.asked_fraction === null ? "all" : percent(line.asked_fraction)) },
    { title: "share", number: true, cell: (line) => percent(line.fraction) },
    ...["available", "examples", "tokens"].map((name) => ({ title: name, number: true, cell: (line) => integer(line[name]) })),
    { title: "trained", number: true, cell: (line) => integer(line.trained_tokens) },
    { title: "no more for", cell: (line) => `its ${words(line.stopped_by)}` },
  ];
  return html`<${Table} caption="The mix by category" columns=${columns} rows=${lines} />`;
}

function Unfit({ lines }) {
  const shown = (lines ?? []).filter((line) => Object.keys(FIT).some((name) => line[name]));
  if (!shown.length) return null;
  const columns = [
    { title: "Source", head: true, cell: (line) => line.name },
    ...Object.entries(FIT).map(([name, title]) => ({ title, number: true, cell: (line) => integer(line[name]) })),
  ];
  return html`<h3>What fits no row as it is</h3><${Table} caption="What fits no row as it is" columns=${columns} rows=${shown} />`;
}

function Rows({ title, rows, count = rows.length, path }) {
  const columns = [
    { title: "File", head: true, cell: (row) => html`<code class="path">${row.file}</code>` },
    { title: "Row", number: true, cell: (row) => integer(row.row) },
    { title: "Why", className: "detail", cell: (row) => words(row.reason) },
    { title: "Begins", className: "detail", cell: (row) => row.excerpt ?? UNKNOWN },
  ];
  return html`<h3>${title}: ${integer(count)}</h3>
    <${Table} caption=${title} columns=${columns} rows=${rows.slice(0, ROWS_SHOWN)} />
    <p class="quiet">All of them: <code class="path">${path}</code></p>`;
}

// What went into each stage of the preparation, what went on, and what did not, and why.
function Ledger({ lines }) {
  if (!lines?.length) return null;
  const gone = (line) =>
    Object.entries(line.gone).filter(([, count]) => count).map(([why, count]) => `${words(why)} ${integer(count)}`).join(", ");
  const columns = [
    { title: "Step", head: true, cell: (line) => words(line.stage) },
    { title: "in", number: true, cell: (line) => integer(line.rows_in) },
    { title: "made", number: true, cell: (line) => (line.made ? integer(line.made) : UNKNOWN) },
    { title: "out", number: true, cell: (line) => integer(line.rows_out) },
    { title: "gone", className: "detail", cell: (line) => gone(line) || UNKNOWN },
  ];
  return html`<details><summary>Where every row went</summary>
    <${Table} caption="Ledger of the preparation" columns=${columns} rows=${lines} /></details>`;
}
