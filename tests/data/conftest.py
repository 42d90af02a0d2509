from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from ray_jobs.data.tokenise import ChatTokenizer, train_bpe

TEXTS = [f"The answer to question {n} is {n * n}.\n    return café 日本 {n}\n\nuser assistant" for n in range(300)]


@pytest.fixture(scope="package")
def cluster() -> Iterator[None]:
    """A Ray of two raylets with a core each, started once for all modules that use it."""
    import ray
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        raylet = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
        raylets = Cluster(initialize_head=True, head_node_args=raylet | {"include_dashboard": False})
        raylets.add_node(**raylet)
        ray.init(raylets.address, logging_level=logging.ERROR, log_to_driver=False)
        yield
        ray.shutdown()
        raylets.shutdown()


def digests(root: Path) -> dict[str, str]:
    """Of every file; the root's own path is left out of manifests, which tell where things lie."""
    own = str(root).encode()
    contents = {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
    return {
        str(path.relative_to(root)): hashlib.sha256(
            content.replace(own, b"") if path.name == "manifest.json" else content
        ).hexdigest()
        for path, content in contents.items()
    }


@pytest.fixture(scope="package")
def bpe_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer trained on `TEXTS`."""
    path = tmp_path_factory.mktemp("tokenizer")
    train_bpe(TEXTS, 420, path)
    return path


@pytest.fixture(scope="package")
def chat(bpe_directory: Path) -> ChatTokenizer:
    return ChatTokenizer(bpe_directory)


@pytest.fixture(scope="package")
def hugging_face(bpe_directory: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(bpe_directory)


def use_kernel(load: Callable[[], object | None]) -> None:
    """Skip where there is no compiler; where there is one, a kernel that cannot be had is a failure."""
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    assert load() is not None
