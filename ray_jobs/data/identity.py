"""Identity examples: conversations in which the model says who it is, written from facts and templates.

Paraphrase by rule: of every `[one|other]` one is taken, a question is put into a frame (greeting, preamble, thanks),
and an answer is chosen among all wordings. Everything is enumerated and put in order by a hash of its text, so the same
spec writes the same conversations on every machine. Rejected: random numbers, whose streams differ between versions.

All templates take turns, so each is heard, however many wordings another has; no first question comes twice. Near-
duplicates are the point here, and deduplication leaves them alone (`SourceBase.duplicates`).
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Sequence
from string import Formatter

from ray_jobs.data.identity_templates import FRAMES, OTHER_MODELS, TEMPLATES
from service.errors import InvalidSpecError
from service.rows.formats import Conversation, Turn
from service.spec.identity import IdentityFacts, IdentitySourceSpec, IdentityTemplate

_CHOICE = re.compile(r"\[([^\[\]]*\|[^\[\]]*)\]")
_SECOND_EXCHANGE_EVERY = 5
_SECOND_FRAMES = ("And {question}", "{Question}", "Thank you. {Question}", "I see. {Question}")

Exchange = tuple[str, str]
"""A question and its answer."""


def wordings(text: str) -> list[str]:
    """All texts that a template's text stands for: one for each combination of its `[one|other]`."""
    parts = _CHOICE.split(text)
    choices = [part.split("|") if number % 2 else [part] for number, part in enumerate(parts)]
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def write_identity(spec: IdentitySourceSpec, field: str) -> list[Conversation]:
    """The conversations of an identity source, without any paraphrase by a model.

    Args:
        spec: the source.
        field: its path in the job's spec, for errors.

    Raises:
        InvalidSpecError: the templates do not give that many.
    """
    frames = spec.frames or FRAMES
    needed = spec.num_examples
    firsts = list(itertools.islice(_exchanges(spec, frames), needed))
    if len(firsts) < needed:
        raise InvalidSpecError(
            f"the templates give {len(firsts)} different questions; ask for fewer, or give more templates or facts",
            f"{field}.num_examples",
        )
    seconds = itertools.cycle(_exchanges(spec, _SECOND_FRAMES))
    return [
        _conversation([first, _unlike(first, seconds)] if number % _SECOND_EXCHANGE_EVERY == 0 else [first])
        for number, first in enumerate(firsts, 1)
    ]


def _conversation(exchanges: Sequence[Exchange]) -> Conversation:
    return tuple(turn for question, answer in exchanges for turn in (Turn("user", question), Turn("assistant", answer)))


def _unlike(first: Exchange, seconds: Iterator[Exchange]) -> Exchange:
    """The next exchange with another answer; a few templates have only one, which then comes twice."""
    second = next(seconds)
    for _ in range(10):
        if second[1] != first[1]:
            break
        second = next(seconds)
    return second


def _exchanges(spec: IdentitySourceSpec, frames: Sequence[str]) -> Iterator[Exchange]:
    """Exchanges with distinct questions, the templates in turn until all their questions are used up."""
    packaged = [template for template in TEMPLATES if spec.use_packaged_templates and _is_told(template, spec.facts)]
    own = [template for template in spec.templates if _is_told(template, spec.facts)]
    times = max(1, len(packaged) // len(own)) if own else 1
    seen: set[str] = set()
    queues = [_of_template(template, spec.facts, frames) for template in packaged]
    queues += [queue for template in own for queue in [_of_template(template, spec.facts, frames)] * times]
    while queues:
        left = []
        for queue in queues:
            exchange = next((exchange for exchange in queue if exchange[0] not in seen), None)
            if exchange is not None:
                seen.add(exchange[0])
                left.append(queue)
                yield exchange
        queues = left


def _is_told(template: IdentityTemplate, facts: IdentityFacts) -> bool:
    """Whether all facts that it speaks of are given."""
    texts = template.questions + template.answers
    named = {fact for text in texts for _, fact, _, _ in Formatter().parse(text) if fact is not None}
    return all(getattr(facts, fact) is not None for fact in named)


def _of_template(template: IdentityTemplate, facts: IdentityFacts, frames: Sequence[str]) -> Iterator[Exchange]:
    """All questions of a template in all frames, in order of hash, each with the answer that its hash picks."""
    told = facts.model_dump(exclude_none=True)
    questions, answers = (
        sorted({way.format(**told) for text in texts for way in wordings(text)})
        for texts in (template.questions, template.answers)
    )
    framed = {
        _frame(frame, question) for frame in frames for question in questions if not _doubts_itself(question, facts)
    }
    for question in sorted(framed, key=_hash):
        yield question, answers[_hash(question) % len(answers)]


def _doubts_itself(question: str, facts: IdentityFacts) -> bool:
    return any(other in question and other.lower() in facts.name.lower() for other in OTHER_MODELS)


def _frame(frame: str, question: str) -> str:
    inner = question if _keeps_case(question) else question[:1].lower() + question[1:]
    return frame.format(Question=question, question=inner)


def _keeps_case(question: str) -> bool:
    """Whether the first word is written large wherever it stands: the pronoun, or an abbreviation."""
    first = question.partition(" ")[0]
    return first == "I" or first.startswith("I'") or (len(first) > 1 and first.isupper())


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
