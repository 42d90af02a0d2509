"""Near-deduplication of raw text beside what else a user could take, on one core.

    make bench-peers                  # installs what it is compared with
    python benchmarks/data/dedup.py [--documents 50000] [--peers datasketch-loop datasketch-bulk rensa datatrove]

Seconds are the processor's, and this project's are taken anew beside each peer, so that other load matters little.
Documents are pieces of 1,700 characters of the Python files that are installed here, and of every seventh a copy with
up to a twenty-fifth of its words replaced. All contenders get the same strings and are asked for what to remove at a
Jaccard similarity of 0.7 of word 5-grams, the earliest of a cluster staying. The truth is exact: all pairs at 0.7 or
above, found through the rarest 5-grams of each document (any such pair has one of them in common), compared as strings.
"""

from __future__ import annotations

import argparse
import os
import random
import site
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from peers import Peer, installed

from ray_jobs.data.bands import find_candidates
from ray_jobs.data.dedup import find_duplicates
from ray_jobs.data.minhash import ShingleSets, band_keys
from service.spec.data import DedupSpec

THRESHOLD, NUM_WORDS, NUM_PERMUTATIONS = 0.7, 5, 128
PIECE_CHARS = 1700
Contender = Callable[[Sequence[str]], set[int]]
"""From texts to the indices of those to remove."""


def documents(number: int) -> list[str]:
    """Real text, with near copies whose similarity lies on both sides of the threshold."""
    rng = random.Random(0)  # noqa: S311  no secret
    texts: list[str] = []
    for piece in pieces():
        texts.append(piece)
        if len(texts) % 7 == 0:
            texts.append(edited(piece, rng))
        if len(texts) >= number:
            break
    if len(texts) < number:
        raise SystemExit(f"only {len(texts)} documents are installed here: ask for fewer")
    return texts[:number]


def pieces() -> Iterator[str]:
    """Parts of installed Python files, in order of path."""
    for directory in [*site.getsitepackages(), str(Path(os.__file__).parent)]:
        for path in sorted(Path(directory).rglob("*.py")):
            try:
                text = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue
            yield from (text[start : start + PIECE_CHARS] for start in range(0, len(text), PIECE_CHARS))


def edited(text: str, rng: random.Random) -> str:
    """A copy with up to a twenty-fifth of its words replaced, each of which changes five shingles."""
    words = text.split()
    for _ in range(rng.randint(0, max(1, len(words) // 25))):
        words[rng.randrange(len(words))] = f"edit{rng.randrange(10**6)}"
    return " ".join(words)


def shingles(text: str) -> set[str]:
    """Word 5-grams as strings."""
    words = text.lower().split()
    return {" ".join(words[start : start + NUM_WORDS]) for start in range(max(1, len(words) - NUM_WORDS + 1))}


def truth(texts: Sequence[str]) -> set[int]:
    """What exact similarity removes: a near pair shares one of the n - ceil(0.7 n) + 1 rarest of each one's n."""
    sets = [shingles(text) for text in texts]
    frequency = Counter(shingle for shingle_set in sets for shingle in shingle_set)
    holders: dict[str, list[int]] = {}
    parent = list(range(len(texts)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for index, mine in enumerate(sets):
        rarest = sorted(mine, key=lambda shingle: (frequency[shingle], shingle))
        prefix = rarest[: len(mine) - int(np.ceil(THRESHOLD * len(mine))) + 1]
        for other in {holder for shingle in prefix for holder in holders.get(shingle, ())}:
            if root(other) != root(index):
                common = len(mine & sets[other])
                if common / (len(mine) + len(sets[other]) - common) >= THRESHOLD:
                    low, high = sorted((root(other), root(index)))
                    parent[high] = low
        for shingle in prefix:
            if frequency[shingle] > 1:
                holders.setdefault(shingle, []).append(index)
    return {index for index in range(len(texts)) if root(index) != index}


def sleddog(texts: Sequence[str]) -> set[int]:
    """This project's, in one process."""
    spec = DedupSpec()
    keys, _ = band_keys(texts, spec)
    numbers = np.arange(len(texts), dtype=np.uint64)
    candidates = find_candidates(np.stack([numbers, numbers], 1), keys)
    sets = ShingleSets.of([texts[index] for index in candidates.indices_C], spec.shingle_words)
    found = find_duplicates(candidates, sets.jaccard, spec.threshold, np.zeros(len(texts)))
    return set(found.dropped_D.tolist())


def datasketch_loop(texts: Sequence[str]) -> set[int]:
    """One `update` a shingle, and its LSH."""
    from datasketch import MinHash, MinHashLSH

    index, removed = MinHashLSH(threshold=THRESHOLD, num_perm=NUM_PERMUTATIONS), set()
    for number, text in enumerate(texts):
        signature = MinHash(num_perm=NUM_PERMUTATIONS)
        for shingle in shingles(text):
            signature.update(shingle.encode())
        if index.query(signature):
            removed.add(number)
        index.insert(number, signature)
    return removed


def datasketch_bulk(texts: Sequence[str]) -> set[int]:
    """`MinHash.generator`, which takes a whole set at once, and its LSH."""
    from datasketch import MinHash, MinHashLSH

    index, removed = MinHashLSH(threshold=THRESHOLD, num_perm=NUM_PERMUTATIONS), set()
    sets = ([shingle.encode() for shingle in shingles(text)] for text in texts)
    for number, signature in enumerate(MinHash.generator(sets, num_perm=NUM_PERMUTATIONS)):
        if index.query(signature):
            removed.add(number)
        index.insert(number, signature)
    return removed


def rensa_deduplicator(texts: Sequence[str]) -> set[int]:
    """The deduplicator of rensa, which checks the estimate."""
    from rensa import RMinHash, RMinHashDeduplicator

    deduplicator = RMinHashDeduplicator(THRESHOLD, NUM_PERMUTATIONS, True, num_bands=16)
    removed = set()
    for number, text in enumerate(texts):
        signature = RMinHash(num_perm=NUM_PERMUTATIONS, seed=42)
        signature.update(list(shingles(text)))
        if not deduplicator.add(str(number), signature):
            removed.add(number)
    return removed


def datatrove_pipeline(texts: Sequence[str]) -> set[int]:
    """The four steps of datatrove's MinHash deduplication with its default bands, one worker, files in between.

    It simplifies text and asks spaCy for words by default; here it only lowers case and splits at white space, as all
    do. It keeps any one of a cluster; of its clusters, all but the earliest count as removed.
    """
    from datatrove.data import Document
    from datatrove.pipeline import dedup
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.utils.logging import logger
    from datatrove.utils.text import TextNormConfig
    from datatrove.utils.word_tokenizers import WhitespaceTokenizer

    logger.remove()

    class Words(WhitespaceTokenizer):
        """Splits at white space and nowhere else."""

        def word_tokenize(self, text: str) -> list[str]:
            """Words of a text."""
            return text.split()

    plain = {"remove_punctuation": False, "norm_unicode_diacritics": False, "norm_numbers": False}
    config = MinhashConfig(n_grams=NUM_WORDS, norm_config=TextNormConfig(**plain))
    documents = [Document(text, str(number)) for number, text in enumerate(texts)]
    with tempfile.TemporaryDirectory() as scratch:
        signatures, buckets, clusters = (f"{scratch}/{name}" for name in ("signatures", "buckets", "clusters"))
        dedup.MinhashDedupSignature(signatures, config, language=Words()).run(documents)
        for bucket in range(config.num_buckets):
            dedup.MinhashDedupBuckets(signatures, buckets, config=config).run(None, bucket, config.num_buckets)
        dedup.MinhashDedupCluster(buckets, clusters, config, save_cluster_id=True).run()
        num_kept = sum(1 for _ in dedup.MinhashDedupFilter(clusters).run(documents))
        members, cluster_of = np.fromfile(f"{clusters}/000000.clusters", dtype=np.uint32).reshape(-1, 2).T
    _, earliest = np.unique(cluster_of, return_index=True)
    removed = set(np.delete(members, earliest).tolist())
    assert len(removed) == len(texts) - num_kept
    return removed


PEERS: dict[str, Peer[Contender]] = {
    "datasketch-loop": Peer(datasketch_loop, "datasketch"),
    "datasketch-bulk": Peer(datasketch_bulk, "datasketch"),
    "rensa": Peer(rensa_deduplicator, "rensa"),
    "datatrove": Peer(datatrove_pipeline, "datatrove"),
}
SLOW = {"datasketch-loop": 10}
"""Contenders that get one in so many of the documents; their rate does not depend on it."""


def rate(contender: Contender, texts: Sequence[str], rounds: int) -> tuple[float, set[int]]:
    """Documents a processor second, the best of some rounds, and what it removes."""
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        removed = contender(texts)
        seconds.append(time.process_time() - start)
    return len(texts) / min(seconds), removed


def main() -> None:
    """Print the table."""
    os.environ["RAYON_NUM_THREADS"] = "1"  # rensa's threads
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=50_000)
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=PEERS)
    options = parser.parse_args()
    peers = installed(PEERS, options.peers)
    texts = documents(options.documents)
    print(f"{len(texts):,} documents, {sum(len(text.encode()) for text in texts) / 1e6:.1f} MB", flush=True)
    expected = truth(texts)
    print(f"exact similarity removes {len(expected):,}\n", flush=True)
    print("| near-deduplication | documents/CPU s | x | precision | recall |\n|" + " --- |" * 5)
    band_keys(texts[:10], DedupSpec())  # compiles the kernel
    mine, removed = rate(sleddog, texts, 3)
    report("sleddog", mine, mine, removed, expected)
    for name, contender in peers.items():
        some = texts[: len(texts) // SLOW.get(name, 1)]
        mine, _ = rate(sleddog, texts, 3)  # anew beside each, since other load changes
        peer, removed = rate(contender, some, 1)
        report(name, peer, mine, removed, {index for index in expected if index < len(some)})


def report(name: str, rate: float, mine: float, removed: set[int], expected: set[int]) -> None:
    """Print a row."""
    right = len(removed & expected)
    print(
        f"| {name} | {rate:,.0f} | {mine / rate:.1f} | {right / len(removed):.5f} | {right / len(expected):.5f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
