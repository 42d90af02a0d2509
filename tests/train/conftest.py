"""What test modules run on four workers, in processes that are started once for all of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.processes import run_processes

NUM_WORKERS = 4


def _process(rank: int, directory: str) -> None:
    # imports the test modules, which would be imported too early for their fixtures otherwise
    from tests.train import test_freeze, test_proofs, test_starved

    os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=NUM_WORKERS)
    results = {
        "proofs": test_proofs.on_four_workers(),
        "tuning": test_freeze.on_four_workers(directory),
        "starved": test_starved.on_four_workers(directory),
    }
    (Path(directory) / f"result-{rank}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


@pytest.fixture(scope="session")
def four_workers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Each worker's results, by the module's subject."""
    directory = tmp_path_factory.mktemp("four")
    run_processes(_process, str(directory), number=NUM_WORKERS)
    return [json.loads((directory / f"result-{rank}.json").read_text()) for rank in range(NUM_WORKERS)]
