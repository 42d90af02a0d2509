"""The whole preparation of synthetic instruction data, stage by stage, through Ray: time, processors, memory, floors.

    python benchmarks/data/pipeline.py [--examples 100000] [--tokens-per-example 300] [--cpus 2]
    python benchmarks/data/pipeline.py --examples 20000 --tokens-per-example 100 800     # memory, of two text lengths
    make bench-scale EXAMPLES=1400000 TOKENS_PER_EXAMPLE=100

What runs is what `sleddog data prepare` runs, in a process of its own: read, deduplicate, tokenise, mix, pack. The
corpus is that of `synthetic.py`; the tokenizer, a byte-level BPE, is trained on some of it beforehand, or by the job
itself (`--train-tokenizer`).

A stage lasts from the end of the one before it to its own last report. `driver` and `workers` are its processor
seconds, and `busy` is their share of the processors that Ray was given, those of Ray's own processes included. The
floor is the processor seconds of what the stage cannot do without (`pipeline_floors.py`), measured alone after the
run; beside it, how many times as many the driver and the workers took. Other load makes seconds longer, these not.
    hash sources   SHA-256 of the files
    read and sign  that again, JSON, a hash of each content, MinHash, Parquet of the text
    deduplicate    sorting the band keys
    tokenizer      training a BPE on a sample, scaled up (only with `--train-tokenizer`)
    tokenise       `encode_batch` of the tokenizer
    pack train     Parquet of the tokens, read and written
Memory is as Linux counts it in /proc: the peak of resident pages, those in Ray's shared store included, and, in
brackets, the most seen without those.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import tempfile
import time
from collections import defaultdict
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from pipeline_floors import ROWS_OF_SAMPLE, Floors
from process_peaks import ProcessPeaks
from rich.console import Console
from synthetic import COPY_EVERY, SOURCES, Written, contents, write_corpus

from ray_jobs.data.progress_lines import ProgressLines
from ray_jobs.data.tokenise import train_bpe
from service.spec.job import JobSpec

VOCAB_SIZE = 32_000
MAX_BYTES_OF_A_PROCESS = 8 * 10**9


class Run(NamedTuple):
    """One preparation.

    Attributes:
        start_s, end_s: on the monotonic clock, when `prepare` was called and had returned.
        reports: stages that it told of, and when, in order.
        manifest, url, tokenizer_url: what it returned.
        processes: what was seen of its processes.
    """

    start_s: float
    end_s: float
    reports: list[tuple[str, float]]
    manifest: dict[str, Any]
    url: str
    tokenizer_url: str
    processes: ProcessPeaks

    @property
    def stages(self) -> dict[str, tuple[float, float]]:
        """Start and end of each, in order; the last is what comes behind the last report."""
        ends = dict(self.reports) | {"manifest": self.end_s}
        return dict(zip(ends, pairwise([self.start_s, *ends.values()]), strict=True))


def spec_of(raw: Path, tokenizer: Path | None) -> JobSpec:
    """A job on the corpus; without a tokenizer it trains one."""
    sources = [
        {"name": s.name, "category": s.category, "form": s.form, "uri": f"file://{raw}/{s.name}-*.jsonl"}
        for s in SOURCES
    ]
    trained, given = {"kind": "train_bpe", "vocab_size": VOCAB_SIZE}, {"kind": "pretrained", "path": str(tokenizer)}
    model = {"base": {"kind": "preset", "name": "quickstart"}, "tokenizer": given if tokenizer else trained}
    return JobSpec.model_validate({"name": "bench-scale", "model": model, "data": {"sources": sources}})


def make_tokenizer(raw: Path, directory: Path) -> Path:
    """Train one on some rows."""
    with (raw / f"{SOURCES[0].name}-00.jsonl").open() as file:
        rows = [json.loads(line) for line, _ in zip(file, range(ROWS_OF_SAMPLE), strict=False)]
    train_bpe((text for row in rows for text in contents(row)), VOCAB_SIZE, directory)
    return directory


def prepare_apart(spec: str, url: str, num_cpus: int, result: Connection) -> None:
    """The driver: prepares, and tells when each stage was told of."""
    del os.environ["RAYON_NUM_THREADS"]
    os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"
    import ray

    from ray_jobs.data.prepare import prepare

    ray.init(
        address="local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
    )
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    reports: list[tuple[str, float]] = []
    with ProgressLines(Console(stderr=True)) as lines:

        def progress(stage: str, done: int, total: int | None, unit: str) -> None:
            reports.append((stage, time.monotonic()))
            lines(stage, done, total, unit)

        start_s = time.monotonic()
        prepared = prepare(JobSpec.model_validate_json(spec), url, progress)
        end_s = time.monotonic()
    ray.shutdown()
    result.send((start_s, end_s, reports, prepared.manifest, prepared.url, prepared.tokenizer_url))


def run_preparation(spec: JobSpec, directory: Path, num_cpus: int) -> Run:
    """Prepare in a process of its own, and watch it."""
    context = multiprocessing.get_context("spawn")
    result, sender = context.Pipe(duplex=False)
    arguments = (spec.model_dump_json(), f"file://{directory}", num_cpus, sender)
    driver = context.Process(target=prepare_apart, args=arguments)
    driver.start()
    sender.close()
    assert driver.pid is not None
    with ProcessPeaks(driver.pid) as processes:
        try:
            told = result.recv()
        except EOFError:
            raise SystemExit("the preparation failed") from None
        driver.join()
    return Run(*told, processes)


def print_stages(run: Run, floors: dict[str, float], num_bytes: int, num_cpus: int) -> None:
    """The table of stages."""
    accounting = run.manifest["accounting"]
    read, kept = accounting[0]["rows_in"], next(s["rows_out"] for s in accounting if s["stage"] == "deduplicate")
    columns = ["stage", "s", "rows/s", "MB/s of files", "driver s", "workers s", "busy", "floor s", "x", "driver GB"]
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for name, (start, end) in [*run.stages.items(), ("all", (run.start_s, run.end_s))]:
        seconds, (cpu_s, driver_rss) = end - start, run.processes.between(start, end)
        rows = read if name in ("hash sources", "read and sign", "deduplicate", "all") else kept
        mine_s = cpu_s.get("driver", 0) + cpu_s.get("worker", 0)
        floor = f"{floors[name]:.1f} | {mine_s / floors[name]:.1f}" if name in floors else " |"
        print(
            f"| {name} | {seconds:.1f} | {rows / seconds:,.0f} | {num_bytes / seconds / 1e6:.1f} "
            f"| {cpu_s.get('driver', 0):.1f} | {cpu_s.get('worker', 0):.1f} "
            f"| {sum(cpu_s.values()) / seconds / num_cpus:.0%} | {floor} | {driver_rss / 1e9:.2f} |"
        )


def print_peaks(run: Run) -> None:
    """The memory of the processes: the largest of each role first."""
    by_role = defaultdict(list)
    for peak in run.processes.peaks.values():
        by_role[peak.role].append(peak)
    print("\n| process | peak GB (without the shared store) |\n| --- | --- |")
    for role, peaks in sorted(by_role.items(), key=lambda item: item[0] not in ("driver", "worker")):
        peaks.sort(key=lambda peak: -peak.rss)
        print(f"| {role} | {', '.join(f'{peak.rss / 1e9:.2f} ({peak.own / 1e9:.2f})' for peak in peaks)} |")
    most = max(peak.rss for peak in run.processes.peaks.values())
    verdict = "within" if most <= MAX_BYTES_OF_A_PROCESS else "ABOVE"
    print(f"\nThe largest had {most / 1e9:.2f} GB: {verdict} the bound of {MAX_BYTES_OF_A_PROCESS / 1e9:.0f}.")


def print_copies(run: Run, written: Written) -> None:
    """Planted beside found."""
    gone = next(stage["gone"] for stage in run.manifest["accounting"] if stage["stage"] == "deduplicate")
    print(
        f"\nCopies planted and dropped: exact {written.exact_copies:,} and {gone['exact_duplicates']:,}, "
        f"near {written.near_copies:,} and {gone['near_duplicates']:,}.\n",
        flush=True,
    )


def measure(work: Path, tokens_per_example: int, options: argparse.Namespace) -> Run:
    """One size: write, prepare, print."""
    raw = work / f"raw-{options.examples}-{tokens_per_example}"
    written = write_corpus(raw, options.examples, tokens_per_example)
    tokenizer = None if options.train_tokenizer else make_tokenizer(raw, work / f"tokenizer-{tokens_per_example}")
    prepared = Path(tempfile.mkdtemp(prefix="prepared-", dir=work))  # a new one, for what is there is not done again
    run = run_preparation(spec_of(raw, tokenizer), prepared, options.cpus)
    packing = run.manifest["packing"]
    print(
        f"## {written.rows:,} examples in {sum(source.num_files for source in SOURCES)} files, "
        f"{written.num_bytes / 1e6:,.0f} MB; {packing['tokens'] / 1e6:,.1f}M tokens in {packing['rows']:,} rows\n"
    )
    alone = Floors(raw, written.num_bytes)
    floors = {
        "hash sources": alone.hash_sources(),
        "read and sign": alone.read_and_sign(),
        "deduplicate": alone.deduplicate(written.rows),
        "tokenise": alone.tokenise(run.tokenizer_url),
        "pack train": alone.pack(run.url, run.manifest),
    }
    if options.train_tokenizer:
        floors["tokenizer"] = alone.train_tokenizer(VOCAB_SIZE)
    print_stages(run, floors, written.num_bytes, options.cpus)
    print_peaks(run)
    print_copies(run, written)
    return run


def main() -> None:
    """Measure each size, in turn."""
    os.environ["RAYON_NUM_THREADS"] = "1"  # a floor is one core's; the driver, and so all of Ray, runs without this
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=100_000, help="rows of all sources together")
    parser.add_argument("--tokens-per-example", type=int, nargs="+", default=[300], help="mean length, roughly")
    parser.add_argument("--cpus", type=int, default=2, help="processors that Ray is given")
    parser.add_argument("--train-tokenizer", action="store_true", help="the job trains its tokenizer on the corpus")
    parser.add_argument("--directory", type=Path, help="to work in, and to leave all of it there; default: a new one")
    options = parser.parse_args()
    if options.examples < len(SOURCES) * COPY_EVERY:
        parser.error(f"--examples: at least {len(SOURCES) * COPY_EVERY}")
    with tempfile.TemporaryDirectory() as temporary:
        work = (options.directory or Path(temporary)).resolve()
        drivers = [
            (tokens, next(p for p in measure(work, tokens, options).processes.peaks.values() if p.role == "driver"))
            for tokens in options.tokens_per_example
        ]
    if len(drivers) > 1:
        print("| tokens an example | driver's peak GB (without the shared store) |\n| --- | --- |")
        for tokens, peak in drivers:
            print(f"| {tokens} | {peak.rss / 1e9:.3f} ({peak.own / 1e9:.3f}) |")


if __name__ == "__main__":
    main()
