"""The second half of preparation, and its entry: hold out, mix, pack.

    packed-<hash>/train/shard-<n>.parquet      packed rows (`ray_jobs.data.row_set`, `ray_jobs.data.packed_rows`)
    packed-<hash>/held_out/shard-<n>.parquet   likewise, of held-out conversations
    packed-<hash>/unfit.parquet                conversations of which nothing fits (`ray_jobs.data.removed_rows`)
    packed-<hash>/lineage.json                 what all of it follows from (`ray_jobs.data.lineage`)
    packed-<hash>/manifest.json                written last: it makes the directory whole

A sweep over data mixes shares one corpus and repeats only this half.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from ray_jobs.data.accounting import Ledger, RowCounts
from ray_jobs.data.corpus import Corpus, prepare_corpus, read_manifest, write_manifest
from ray_jobs.data.corpus_builder import ProgressCallback
from ray_jobs.data.fit import fit
from ray_jobs.data.lineage import PACKAGES, identity, read_lineage, write_lineage
from ray_jobs.data.mixture import Candidates, choose_mixture, held_out
from ray_jobs.data.packing_report import (
    Written,
    describe_certificate,
    describe_held_out,
    describe_mixture,
    describe_packing,
    describe_sources,
)
from ray_jobs.data.removed_rows import UNFIT_FILE, write_unfit
from ray_jobs.data.row_set import RowSetWriter, remove_ordered
from ray_jobs.data.shards import Documents
from service.errors import DataChangedError, EmptyDataError
from service.spec.job import JobSpec

FORMAT_VERSION = 7
"""Raised when this code would pack the same corpus otherwise."""


@dataclass(frozen=True)
class PreparedData:
    """Packed rows on disk.

    Attributes:
        url: directory with `train/` and `held_out/`.
        tokenizer_url: directory of a Hugging Face tokenizer.
        manifest: what came in and what was done to it.
        reused: whether an earlier run had already made all of it.
    """

    url: str
    tokenizer_url: str
    manifest: dict[str, Any]
    reused: bool


def prepare(spec: JobSpec, prepared_url: str, progress: ProgressCallback) -> PreparedData:
    """Make the packed rows of a job, or find that they are there; Ray is connected.

    Args:
        spec: the job's.
        prepared_url: where prepared data lies, shared by jobs.
        progress: told how far it is.

    Raises:
        SleddogError: as `prepare_corpus`; and EmptyDataError when no conversation is left to train on.
    """
    corpus = prepare_corpus(spec, prepared_url, progress)
    decided_by = _decided_by(spec, corpus)
    require_expected(spec.data.expected_hash, identity(decided_by))
    url, tokenizer_url = f"{prepared_url}/packed-{identity(decided_by)}", f"{corpus.url}/tokenizer"
    reused = corpus.reused
    if (manifest := read_manifest(url)) is None:
        reused = False
        try:
            manifest = {"hash": identity(decided_by), **_Packer(spec, corpus, url, progress).pack()}
            write_lineage(url, decided_by, corpus=read_lineage(corpus.url))
            write_manifest(url, manifest)
        except FileNotFoundError:
            # another job that prepares the same was first, and has removed what both had on the way
            if (manifest := read_manifest(url)) is None:
                raise
    remove_ordered(url)  # of this run, or of one that was killed behind its manifest
    return PreparedData(url, tokenizer_url, manifest, reused)


def require_expected(expected: str | None, found: str) -> None:
    """Refuse other data than is required.

    Args:
        expected: the hash that the packed rows must have, if that is required.
        found: the one that they would have.

    Raises:
        DataChangedError: they differ.
    """
    if expected not in (None, found):
        raise DataChangedError(
            f"the data is {found}, not {expected}: a file, a package or the spec is not what it was",
            "data.expected_hash",
        )


def _decided_by(spec: JobSpec, corpus: Corpus) -> dict[str, Any]:
    """All that decides the packed rows of a corpus."""
    fields = {"mixture", "mixture_by", "leave_out", "sequence_length", "on_long_conversation", "held_out_fraction"}
    return {
        "version": FORMAT_VERSION,
        "corpus": corpus.manifest["hash"],
        "seed": _seed(spec),
        "sources": [[source.weight, source.epochs, source.hold_out] for source in spec.data.sources],
        **spec.data.model_dump(include=fields),
    }


def _seed(spec: JobSpec) -> int:
    return spec.seed if spec.data.seed is None else spec.data.seed


class _Packer:
    """Holds out, mixes and packs one corpus."""

    def __init__(self, spec: JobSpec, corpus: Corpus, url: str, progress: ProgressCallback) -> None:
        self._spec, self._corpus, self._url, self._progress = spec, corpus, url, progress
        index = corpus.read_index()
        if len(index) != corpus.manifest["accounting"][-1]["rows_out"]:
            raise AssertionError(f"the corpus says it has {corpus.manifest['accounting'][-1]}, its index {len(index)}")
        self._names, self._seed = [source.name for source in spec.data.sources], _seed(spec)
        self._left_out = [self._names.index(name) for name in spec.data.leave_out]
        self._ledger = Ledger(self._names)
        self._fitted = fit(
            index, f"{corpus.url}/tokenised", spec.data.sequence_length, spec.data.on_long_conversation, progress
        )
        self._unfit = self._fitted.unfit(index, self._names)
        self._source_of_conversation, self._groups = index["source"].to_numpy(), index["group_hash"].to_pylist()
        # from here on by document: a conversation, or a piece of one
        self._conversation = self._fitted.conversation
        self._source = self._source_of_conversation[self._conversation]
        self._file, self._position = (index[name].to_numpy()[self._conversation] for name in ("file", "position"))
        self._head, self._start, self._length, self._trained = self._fitted.pieces.T
        self._category = np.array([source.category for source in spec.data.sources])[self._source]

    def pack(self) -> dict[str, Any]:
        """Write the rows; returns the manifest without its hash."""
        training, kept_out = self._hold_out()
        chosen, stopped_by = self._mix(training)
        self._account(training, kept_out, chosen)
        available = Counter(self._category[self._offered(training)].tolist())
        train, evaluation = self._write(chosen, "train"), self._write(kept_out, "held_out")
        if train.trained.total() != (expected := self._trained[chosen].sum()):
            raise AssertionError(
                f"{expected} tokens of the mix are to be trained, {train.trained.total()} were written"
            )
        fit_lines = self._fitted.describe(self._source_of_conversation, self._names)
        packing = describe_packing(train, self._spec.data.sequence_length)
        corpus = {key: value for key, value in self._corpus.manifest.items() if key != "hash"}
        return {
            "corpus": self._corpus.manifest["hash"],
            **corpus,
            "accounting": corpus["accounting"] + self._ledger.stages,
            "held_out": describe_held_out(evaluation),
            "fit": fit_lines,
            "unfit_rows": write_unfit(self._url, self._unfit),
            "unfit_rows_url": f"{self._url}/{UNFIT_FILE}",
            "mixture_by": self._spec.data.mixture_by,
            "mixture": describe_mixture(self._spec.data, train, available, stopped_by),
            "mixture_sources": self._describe_sources(training, chosen),
            "packing": {
                **packing,
                "left_out_by_mixture": len(np.setdiff1d(training, chosen)),
                "repeated": len(chosen) - len(np.unique(chosen)),
            },
            "shards": {"train": train.shards, "held_out": evaluation.shards},
            "certificate": describe_certificate(packing, fit_lines, train, evaluation),
            "versions": {package: version(package) for package in PACKAGES},
        }

    def _account(self, training: np.ndarray, kept_out: np.ndarray, chosen: np.ndarray) -> None:
        """Enter what became of each conversation; one that is split is in the mix if any piece of it is."""
        source = self._source_of_conversation
        usable, gone = Counter(source[self._fitted.usable].tolist()), self._fitted.gone(source)
        self._ledger.stage("fit", Counter(source.tolist()), usable, **gone)
        on, held = self._rows(training), self._rows(kept_out)
        self._ledger.stage("hold out", usable, on, held_out=held)
        left = np.setdiff1d(self._conversation[training], self._conversation[chosen])
        self._ledger.stage("mix", on, self._rows(chosen), left_out_by_mixture=Counter(source[left].tolist()))

    def _rows(self, documents: np.ndarray) -> RowCounts:
        """Conversations that documents are of, by source."""
        return Counter(self._source_of_conversation[np.unique(self._conversation[documents])].tolist())

    def _hold_out(self) -> tuple[np.ndarray, np.ndarray]:
        """The documents to train on, and those kept from training.

        All pieces of a conversation share its lot, and so do all threads of a tree: they have turns in common.
        """
        groups, categories = [self._groups[index] for index in self._conversation], self._category.tolist()
        is_held_out = held_out(groups, categories, self._spec.data.held_out_fraction, self._seed)
        whole = [number for number, source in enumerate(self._spec.data.sources) if source.hold_out]
        never = {groups[document] for document in np.flatnonzero(np.isin(self._source, whole))}
        is_held_out |= np.array([group in never for group in groups], dtype=bool)
        return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)

    def _offered(self, training: np.ndarray) -> np.ndarray:
        """Those of the documents that the mix may take."""
        offered: np.ndarray = training[~np.isin(self._source[training], self._left_out)]
        return offered

    def _mix(self, training: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        """Those of the documents that make up the mix, repeated ones as often; and why no more of each category."""
        data = self._spec.data
        offered = self._offered(training)
        categories = self._category[offered]
        if not len(offered):
            raise EmptyDataError("no conversation is left to train on", "data")
        wanted = {category for category, share in (data.mixture or {}).items() if share.share}
        for category in sorted(wanted - set(categories.tolist())):
            raise EmptyDataError(f"no conversation of {category!r} is left to train on", f"data.mixture.{category}")
        lengths = self._length[offered]
        size = lengths if data.mixture_by == "tokens" else np.ones_like(lengths)
        mixture = choose_mixture(
            Candidates(categories, self._source[offered], size),
            data.mixture,
            [source.weight for source in data.sources],
            [source.epochs for source in data.sources],
            self._seed,
        )
        if not len(mixture.chosen):
            raise EmptyDataError("the caps let no conversation in", "data.mixture")
        return offered[mixture.chosen], dict(mixture.stopped_by)

    def _write(self, chosen: np.ndarray, name: str) -> Written:
        """Pack the chosen documents and write their rows."""
        categories, codes = np.unique([source.category for source in self._spec.data.sources], return_inverse=True)
        writer = RowSetWriter(
            f"{self._corpus.url}/tokenised",
            self._url,
            self._spec.data.sequence_length,
            categories.tolist(),
            self._progress,
        )
        documents = Documents(
            self._file, self._position, self._head, self._start, self._length, codes[self._source].astype(np.int32)
        )
        return writer.write(documents.take(chosen), name, self._seed)

    def _describe_sources(self, training: np.ndarray, chosen: np.ndarray) -> list[dict[str, Any]]:
        available, distinct, examples = (
            Counter(self._source[documents].tolist()) for documents in (training, np.unique(chosen), chosen)
        )
        tokens, trained = (
            np.bincount(self._source[chosen], values[chosen], len(self._spec.data.sources)).astype(int).tolist()
            for values in (self._length, self._trained)
        )
        return describe_sources(self._spec.data, available, distinct, examples, tokens=tokens, trained=trained)
