r"""From conversations to token ids and the mask of trained tokens.

The chat template is ChatML, Arctic's: `<|im_start|>{role}\n{content}<|im_end|>\n` for each turn. The mask is built
turn by turn while rendering, never by searching the rendered text: an assistant's content and its `<|im_end|>` are
trained, all else is not. Text that looks like a special token inside a turn is encoded as ordinary text, so no row can
forge a turn.

Tokens equal those of `apply_chat_template` with one exception: a reply that begins with white space may merge with the
line end before it into one token. There the reply is encoded apart, because the mask would have to cut that token, and
because a model that is asked for a reply stands behind a whole line end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer, decoders, models, pre_tokenizers, trainers

from ray_jobs.data.cutting import TurnBorders
from service.errors import InvalidSpecError
from service.rows.chatml import END, START
from service.rows.formats import ROLES, Conversation, Turn

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def train_bpe(texts: Iterable[str], vocab_size: int, directory: Path) -> None:
    """Train a byte-level BPE and save it as a Hugging Face tokenizer with the chat template.

    Args:
        texts: what to train on.
        vocab_size: pieces at most, special ones included.
        directory: to write to.
    """
    from transformers import PreTrainedTokenizerFast  # it takes a second, and tasks do without it

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    saved = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=START, eos_token=END)
    saved.chat_template = CHAT_TEMPLATE
    saved.save_pretrained(directory)


@dataclass(frozen=True)
class TokenisedConversation:
    """A rendered conversation of T tokens.

    Attributes:
        tokens: int32 [T].
        trained: bool [T]; whether a token is a target of the loss, predicted from the one before it.
        borders: of its turns; a turn ends behind its line end.
    """

    tokens: np.ndarray
    trained: np.ndarray
    borders: TurnBorders


class ChatTokenizer:
    """Renders conversations with a tokenizer that has the two ChatML tokens.

    Args:
        directory: of a Hugging Face tokenizer.

    Raises:
        InvalidSpecError: it lacks a ChatML token, or reads one out of ordinary text.
    """

    def __init__(self, directory: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self._encode_parts_of_a_text()
        self._start, self._end = self._special(START), self._special(END)
        self._line_end = self._tokenizer.encode("\n", add_special_tokens=False).ids

    def _encode_parts_of_a_text(self) -> None:
        """Have each turn encoded to what it becomes within its conversation, with offsets that cover all of it."""
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.post_processor = None  # some cut white space out of the offsets
        own = self._tokenizer.pre_tokenizer
        parts: Any = own if isinstance(own, pre_tokenizers.Sequence) else [own]
        for part in parts:
            # `first` marks the first word of a whole text; a conversation begins with a special token, which has none
            if isinstance(part, pre_tokenizers.Metaspace) and part.prepend_scheme == "first":
                part.prepend_scheme = "never"

    def _special(self, token: str) -> int:
        number = self._tokenizer.token_to_id(token)
        if number is None:
            raise InvalidSpecError(f"this tokenizer has no {token}, which the chat template needs", "model.tokenizer")
        self._tokenizer.add_special_tokens([token])  # in some it is an added one only, which text is searched for
        if number in self._tokenizer.encode(token, add_special_tokens=False).ids:
            raise InvalidSpecError(f"this tokenizer cannot tell {token} from the same text in a row", "model.tokenizer")
        return int(number)

    def render(self, conversations: Sequence[Conversation]) -> list[TokenisedConversation]:
        """Tokens and mask of each conversation."""
        turns = [turn for conversation in conversations for turn in conversation]
        encoded = iter(self._encode([f"{turn.role}\n{turn.content}" for turn in turns]))
        return [self._join(conversation, [next(encoded) for _ in conversation]) for conversation in conversations]

    def _encode(self, texts: list[str]) -> list[Encoding]:
        encodings: list[Encoding] = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        return encodings

    def _turn(self, turn: Turn, encoding: Encoding) -> tuple[list[int], list[bool]]:
        """Tokens and mask of one turn, between its two special tokens."""
        if turn.role != "assistant":
            return encoding.ids, [False] * len(encoding.ids)
        border = len(turn.role) + 1
        if any(start < border < end for start, end in encoding.offsets):
            header, content = self._encode([f"{turn.role}\n", turn.content])
            return header.ids + content.ids, [False] * len(header.ids) + [True] * len(content.ids)
        return encoding.ids, [start >= border for start, _ in encoding.offsets]

    def _join(self, conversation: Conversation, encodings: Sequence[Encoding]) -> TokenisedConversation:
        tokens: list[int] = []
        trained: list[bool] = []
        ends: list[int] = []
        answers: list[int] = []
        for turn, encoding in zip(conversation, encodings, strict=True):
            ids, mask = self._turn(turn, encoding)
            tokens += [self._start, *ids, self._end, *self._line_end]
            trained += [False, *mask, turn.role == "assistant", *(False for _ in self._line_end)]
            ends.append(len(tokens))
            answers.append(sum(mask))
        roles = [ROLES.index(turn.role) for turn in conversation]
        borders = TurnBorders(*(np.array(numbers, dtype=np.int32) for numbers in (ends, roles, answers)))
        return TokenisedConversation(np.array(tokens, dtype=np.int32), np.array(trained), borders)
