"""A picture of a finished run: loss by category, and the balance loss beside its floor.

python benchmarks/train/curves.py RUN_URL OUT.svg
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ray_jobs.html.charts import COLOURS, WIDTH, Line, lines, text
from ray_jobs.report import read_events
from ray_jobs.run_directory import RunDirectory

GREY = "#7a7a7a"
PART_HEIGHT = 230


def main() -> None:
    """Draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_url")
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    events = read_events(RunDirectory(options.run_url))
    steps = {event.data["step"]: event.data for event in events if event.type == "train.step"}
    taken = [steps[number] for number in sorted(steps)]  # type: ignore[type-var]
    categories = sorted({name for data in taken for name in data["loss_by_category"]})  # type: ignore[union-attr]
    losses = [
        Line(
            name,
            [(d["step"], d["loss_by_category"][name]) for d in taken if name in d["loss_by_category"]],  # type: ignore[call-overload, index, misc, operator]
            COLOURS[number],
        )
        for number, name in enumerate(categories)
    ]
    balance = [
        Line(name, [(data["step"], data[name]) for data in taken], colour)  # type: ignore[misc]
        for name, colour in (("balance_loss_floor", GREY), ("balance_loss", COLOURS[0]))
    ]
    named = [(line.title, line.colour) for line in losses] + [("balance loss", COLOURS[0]), ("its floor", GREY)]
    titles = ["loss by category, nats per trained token", "balance loss, sum over layers"]
    pictures = [
        lines(drawn, "step").replace("<svg ", f'<svg height="{PART_HEIGHT - 28}" ') for drawn in (losses, balance)
    ]
    parts = [
        f'<g transform="translate(0 {PART_HEIGHT * number + 20})">{text(60, 0, title, "start")}{picture}</g>'
        for number, (title, picture) in enumerate(zip(titles, pictures, strict=True))
    ]
    key = [
        f'<g fill="{colour}">{text(200 + 120 * number, 2 * PART_HEIGHT + 30, name, "start")}</g>'
        for number, (name, colour) in enumerate(named)
    ]
    box = f'viewBox="0 0 {WIDTH} {2 * PART_HEIGHT + 40}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {box} font-family="sans-serif">'
    options.picture.write_text(
        f'{head}<rect width="100%" height="100%" fill="white"/>{"".join([*parts, *key])}</svg>\n'
    )


if __name__ == "__main__":
    main()
