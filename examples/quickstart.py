"""The quickstart's job by the Python client: post it, follow its events, read its report.

Needs a running service (`make serve`) and its key in SLEDDOG_API_KEY or SLEDDOG_API_KEY_FILE (`.sleddog/api-key`).
Usage: python examples/quickstart.py [SPEC]
"""

from __future__ import annotations

import sys
from pathlib import Path

from service.client.client import Client
from service.client.spec_file import load_spec


def main(spec_path: Path) -> None:
    """Run one job to its end."""
    with Client() as client:
        job = client.jobs.create(load_spec(spec_path))
        print("posted as", job.id)
        for event in client.jobs.stream_events(job.id):
            if event.type == "train.step":
                print(f"step {event.data['step']} of {event.data['total_steps']}: loss {event.data['loss']:.3f}")
        client.jobs.wait(job.id)  # raises when it failed
        report = client.jobs.report(job.id)
        print("held-out loss before", report["held_out"]["before"])
        print("held-out loss after ", report["held_out"]["after"])
        print("checkpoint", report["export"]["path"])


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "quickstart.yaml")
