from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from service.data_commands import DATA_MODULE
from service.settings import DRIVER_MODULES

HEAVY = ("torch", "ray", "deepspeed", "transformers", "fastapi", "sqlalchemy", "pyarrow", "numpy", "fsspec")


@pytest.mark.parametrize("module", ["service.client.client", "service.client.spec_file", "service.cli"])
def test_the_client_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("package", ["service", "ray_jobs", "moe"])
def test_packages_import_nothing(package: str) -> None:
    code = f"import sys; before = set(sys.modules); import {package}; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"['{package}']"


def test_every_submitted_module_exists() -> None:
    assert all(importlib.util.find_spec(module) is not None for module in DRIVER_MODULES.values())
    assert importlib.util.find_spec(DATA_MODULE) is not None
