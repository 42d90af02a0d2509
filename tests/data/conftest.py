from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator

import pytest


@pytest.fixture(scope="package")
def cluster() -> Iterator[None]:
    """A local Ray of two cores, started once for all modules that use it."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=100 * 2**20,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
        yield
        ray.shutdown()


def use_kernel(load: Callable[[], object | None]) -> None:
    """Skip where there is no compiler; where there is one, a kernel that cannot be had is a failure."""
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    assert load() is not None
