"""Documents that are a little wrong: valid ones, changed at random in one to three places."""

from __future__ import annotations

import copy
from random import Random
from typing import Any

ODD_VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 0.5, 1e308, 10**30, "", " ", "x", "x" * 5000, "0", "é\u2028", "\0", "\ud800", "../..",
    "file:///etc/passwd", "http://169.254.169.254/", [], {}, [None], [[]], {"kind": "none"}, {"": {}}, {"a.b": 1},
]  # fmt: skip
Place = tuple[Any, Any]
"""A dictionary or a list, and a key in it."""


def mutated(document: dict[str, Any], random: Random) -> dict[str, Any]:
    """A changed copy."""
    changed = copy.deepcopy(document)
    for _ in range(random.randint(1, 3)):
        places = _places(changed)
        if not places:
            break
        container, key = random.choice(places)
        match random.randrange(6):
            case 0:
                del container[key]
            case 1 if isinstance(container, dict):
                container[random.choice(["unknown", "kind", "", str(key).upper()])] = copy.deepcopy(container[key])
            case 2 if isinstance(container, list):
                container.append(copy.deepcopy(container[key]))
            case 3:
                other, other_key = random.choice(places)
                container[key] = copy.deepcopy(other[other_key])
            case _:
                container[key] = copy.deepcopy(random.choice(ODD_VALUES))
    return changed


def _places(value: Any) -> list[Place]:
    if isinstance(value, dict):
        keys: list[Any] = list(value)
    else:
        keys = list(range(len(value))) if isinstance(value, list) else []
    return [place for key in keys for place in ((value, key), *_places(value[key]))]
