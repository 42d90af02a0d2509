"""Write the quickstart's instruction data: real text that every machine with Python has, and generated exercises.

    code      docstring → source of the standard library's functions           alpaca             code.jsonl
    general   questions on the language reference, `pydoc_data.topics`         sharegpt           general.json
    math      word problems and linear equations, worked out and checked       prompt_completion  math-*.parquet, .csv

Usage: python examples/make_quickstart_data.py [DIRECTORY]. The same Python version writes the same files.
"""

from __future__ import annotations

import ast
import csv
import itertools
import json
import random
import sys
import sysconfig
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

SKIPPED_FOLDERS = {"test", "tests", "idlelib", "lib2to3", "site-packages", "turtledemo", "idle_test", "ensurepip"}
MAX_CODE_CHARS, MAX_CODE_EXAMPLES = 700, 1700
MAX_TOPIC_CHARS, MAX_TOPIC_EXAMPLES = 900, 420
NUM_MATH_EXAMPLES = 2400


def code_rows() -> list[dict[str, str]]:
    """Functions with a docstring, the docstring moved from the source to the instruction."""
    library = Path(sysconfig.get_paths()["stdlib"])
    rows = []
    for path in sorted(library.rglob("*.py")):
        if SKIPPED_FOLDERS.isdisjoint(path.relative_to(library).parts):
            rows += list(_functions(path.read_bytes()))
    return random.Random(0).sample(rows, min(len(rows), MAX_CODE_EXAMPLES))


def _functions(source: bytes) -> Iterator[dict[str, str]]:
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef) or not (docstring := ast.get_docstring(node)) or len(node.body) < 2:
            continue
        node.body = node.body[1:]
        code = ast.unparse(node)
        if len(code) <= MAX_CODE_CHARS and len(docstring) <= MAX_CODE_CHARS // 2:
            yield {"instruction": f"Write the Python function `{node.name}`.", "input": docstring, "output": code}


def general_rows() -> list[dict[str, Any]]:
    """Passages of the language reference as answers to questions about their topic."""
    rows = []
    for topic, text in sorted(topics.items()):
        for number, passage in enumerate(_passages(text), 1):
            question = f"What does the Python reference say about {topic}? Part {number}, please."
            turns = [{"from": "human", "value": question}, {"from": "gpt", "value": passage}]
            rows.append({"conversations": turns})
    return random.Random(1).sample(rows, min(len(rows), MAX_TOPIC_EXAMPLES))


def _passages(text: str) -> Iterator[str]:
    passage = ""
    for paragraph in text.split("\n\n"):
        if passage and len(passage) + len(paragraph) > MAX_TOPIC_CHARS:
            yield passage
            passage = ""
        passage = f"{passage}\n\n{paragraph}".strip("\n")
    if len(passage) > 100:
        yield passage[:MAX_TOPIC_CHARS]


NAMES = ("Ada", "Bo", "Chen", "Dina", "Emil", "Fatima", "Goro", "Hana", "Ivan", "Jun", "Kofi", "Lena", "Mara", "Nils")
THINGS = ("apples", "pencils", "marbles", "stamps", "books", "cookies", "shells", "cards", "beads", "coins")
PLACES = ("a farm", "a school", "a library", "a bakery", "a harbour", "a museum", "a garden", "a workshop")


def math_rows() -> list[dict[str, str]]:
    """Distinct problems, each with its steps; the last line holds the answer after `####`."""
    rng = random.Random(2)
    problems: dict[str, str] = {}
    for make in itertools.cycle(PROBLEMS):
        prompt, steps, answer = make(rng)
        problems.setdefault(prompt, f"{steps}\n#### {answer}")
        if len(problems) == NUM_MATH_EXAMPLES:
            return [{"prompt": prompt, "completion": completion} for prompt, completion in problems.items()]
    raise AssertionError("a cycle does not end")


def _shopping(rng: random.Random) -> tuple[str, str, int]:
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    count, price, paid = rng.randint(2, 30), rng.randint(2, 20), 0
    cost = count * price
    paid = cost + rng.randint(1, 40)
    change = paid - cost
    check(cost + change, paid)
    return (
        f"{name} buys {count} {thing} for {price} dollars each and pays with {paid} dollars. How much change is there?",
        f"The {thing} cost {count} * {price} = {cost} dollars.\nThe change is {paid} - {cost} = {change} dollars.",
        change,
    )


def _sharing(rng: random.Random) -> tuple[str, str, int]:
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    friends, each, left = rng.randint(2, 12), rng.randint(2, 25), rng.randint(0, 1)
    total = friends * each + left
    check(divmod(total, friends), (each, left))
    return (
        f"{name} shares {total} {thing} equally among {friends} friends. How many {thing} does each friend get?",
        f"Divide: {total} = {friends} * {each} + {left}.\nEach friend gets {each} {thing}, and {left} remain.",
        each,
    )


def _collecting(rng: random.Random) -> tuple[str, str, int]:
    first, second = rng.sample(NAMES, 2)
    thing = rng.choice(THINGS)
    own, times, given = rng.randint(3, 40), rng.randint(2, 6), rng.randint(1, 3)
    other = own * times
    total = own + other - given
    check(total, own * (times + 1) - given)
    return (
        f"{first} has {own} {thing}. {second} has {times} times as many. Together they give away {given}. "
        "How many remain?",
        f"{second} has {own} * {times} = {other} {thing}.\nTogether: {own} + {other} = {own + other}.\n"
        f"After giving away {given}: {own + other} - {given} = {total}.",
        total,
    )


def _speed(rng: random.Random) -> tuple[str, str, int]:
    name, speed, hours, rest = rng.choice(NAMES), rng.randint(3, 90), rng.randint(2, 9), rng.randint(1, 60)
    done = speed * hours
    total = done + rest
    check(total - speed * hours, rest)
    return (
        f"{name} has {total} kilometres to go and travels {hours} hours at {speed} kilometres an hour. "
        "How many kilometres are left?",
        f"The distance covered is {speed} * {hours} = {done}.\nLeft: {total} - {done} = {rest}.",
        rest,
    )


def _workers(rng: random.Random) -> tuple[str, str, int]:
    place, thing = rng.choice(PLACES), rng.choice(THINGS)
    people, days, each = rng.randint(2, 15), rng.randint(2, 10), rng.randint(2, 12)
    daily = people * each
    total = daily * days
    check(total, people * days * each)
    return (
        f"At {place}, {people} people sort {each} {thing} a day each. How many {thing} do they sort in {days} days?",
        f"In a day they sort {people} * {each} = {daily}.\nIn {days} days: {daily} * {days} = {total}.",
        total,
    )


def _percentage(rng: random.Random) -> tuple[str, str, int]:
    thing, percent = rng.choice(THINGS), rng.choice((5, 10, 20, 25, 50))
    price = rng.randint(1, 40) * (100 // percent)
    off = price * percent // 100
    check(Fraction(price * percent, 100), off)
    return (
        f"A box of {thing} costs {price} dollars and is sold {percent} percent cheaper. What is the new price?",
        f"{percent} percent of {price} is {price} * {percent} / 100 = {off}.\nThe new price is {price} - {off} = "
        f"{price - off}.",
        price - off,
    )


def _linear(rng: random.Random) -> tuple[str, str, int]:
    factor, x, added = rng.randint(2, 15), rng.randint(-20, 20), rng.randint(1, 50)
    right = factor * x + added
    check(factor * x + added, right)
    return (
        f"Solve {factor}x + {added} = {right} for x.",
        f"Subtract {added}: {factor}x = {right} - {added} = {right - added}.\n"
        f"Divide by {factor}: x = {right - added} / {factor} = {x}.",
        x,
    )


def _two_sided(rng: random.Random) -> tuple[str, str, int]:
    left, right = rng.sample(range(2, 12), 2)
    x, added = rng.randint(-12, 12), rng.randint(1, 30)
    total = left * x + added - right * x
    check(left * x + added, right * x + total)
    difference = left - right
    return (
        f"Solve {left}x + {added} = {right}x + {total} for x.",
        f"Bring x to the left: {left}x - {right}x = {difference}x = {total} - {added} = {total - added}.\n"
        f"Divide by {difference}: x = {x}.",
        x,
    )


def _rectangle(rng: random.Random) -> tuple[str, str, int]:
    width, height = rng.randint(2, 60), rng.randint(2, 60)
    perimeter = 2 * (width + height)
    check(perimeter // 2 - width, height)
    return (
        f"A field is {width} metres wide and {height} metres long. How long is the fence around it?",
        f"Half the fence is {width} + {height} = {width + height}.\nThe whole is 2 * {width + height} = {perimeter}.",
        perimeter,
    )


def _average(rng: random.Random) -> tuple[str, str, int]:
    name, mean = rng.choice(NAMES), rng.randint(10, 60)
    first, second = mean + rng.randint(-9, 9), mean + rng.randint(-9, 9)
    third = 3 * mean - first - second
    check(Fraction(first + second + third, 3), mean)
    return (
        f"{name} counts {first}, {second} and {third} birds on three days. What is the mean?",
        f"The sum is {first} + {second} + {third} = {3 * mean}.\nDivided by 3: {3 * mean} / 3 = {mean}.",
        mean,
    )


def _ages(rng: random.Random) -> tuple[str, str, int]:
    first, second = rng.sample(NAMES, 2)
    younger, gap, years = rng.randint(3, 40), rng.randint(1, 30), rng.randint(1, 20)
    total = (younger + years) + (younger + gap + years)
    check(total, 2 * younger + gap + 2 * years)
    return (
        f"{first} is {younger} and {second} is {gap} years older. How old are they together in {years} years?",
        f"{second} is {younger} + {gap} = {younger + gap}.\nIn {years} years they are {younger + years} and "
        f"{younger + gap + years}, together {total}.",
        total,
    )


def _fractions(rng: random.Random) -> tuple[str, str, int]:
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    parts, unit = rng.randint(3, 9), rng.randint(2, 15)
    taken = rng.randint(1, parts - 1)
    total = parts * unit
    check(Fraction(taken, parts) * total, taken * unit)
    return (
        f"{name} gives {taken}/{parts} of {total} {thing} to a friend. How many {thing} does {name} keep?",
        f"One part is {total} / {parts} = {unit}.\nGiven: {taken} * {unit} = {taken * unit}.\nKept: {total} - "
        f"{taken * unit} = {total - taken * unit}.",
        total - taken * unit,
    )


PROBLEMS = (
    _shopping,
    _sharing,
    _collecting,
    _speed,
    _workers,
    _percentage,
    _linear,
    _two_sided,
    _rectangle,
    _average,
    _ages,
    _fractions,
)


def check(actual: object, expected: object) -> None:
    """Stop when a worked answer is wrong."""
    if actual != expected:
        raise AssertionError(f"a generated answer is wrong: {actual} is not {expected}")


def write(directory: Path) -> None:
    """Write all files."""
    directory.mkdir(parents=True, exist_ok=True)
    code = code_rows()
    # as raw dumps do, some rows come twice, word for word
    _write_jsonl(directory / "code.jsonl", code + code[:100])
    (directory / "general.json").write_text(json.dumps(general_rows(), indent=1, ensure_ascii=False))
    math = math_rows()
    third = len(math) // 3
    for number in range(2):
        part = math[number * third : (number + 1) * third]
        pq.write_table(pa.Table.from_pylist(part), directory / f"math-{number}.parquet")
    with (directory / "math-2.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "completion"])
        writer.writeheader()
        writer.writerows(math[2 * third :])


def _write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "quickstart-data"
    write(target)
    for path in sorted(target.iterdir()):
        print(f"{path.stat().st_size:9,d}  {path}")
