"""The processes of tests that need several: forked off one that has imported what all of them use.

Each would spend ten seconds of a processor on importing PyTorch, its optimizers' tracer, DeepSpeed and Ray, for work
that takes one.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from typing import Any

import pytest
import torch.multiprocessing

_METHOD = "forkserver"
# none of the tests' own modules: what a test changes in them stays in its processes
forkserver.set_forkserver_preload(
    ["deepspeed", "pytest", "ray_jobs.train.loop", "service.api.app", "service.serve", "torch._dynamo"]
)


def run_processes(work: Callable[..., None], *arguments: Any, number: int) -> None:
    """Run processes to their end; the first exception of one ends the others, and is raised.

    Args:
        work: called with a process's number, from 0, and the arguments.
        arguments: further ones.
        number: of processes.
    """
    _ensure_running()
    torch.multiprocessing.start_processes(work, arguments, nprocs=number, start_method=_METHOD)


def start_process(work: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Start a process, and do not wait for it.

    One forked off the tests' own would have the locks that threads of earlier tests hold at that moment, for ever.

    Args:
        work: called with the arguments.
        arguments: that can be pickled.
    """
    _ensure_running()
    process: BaseProcess = multiprocessing.get_context(_METHOD).Process(target=work, args=arguments)
    process.start()
    return process


def _ensure_running() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")  # DeepSpeed looks when it is imported
        forkserver.ensure_running()
