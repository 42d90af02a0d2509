from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from moe.init import initialize
from moe.model import HybridModel
from ray_jobs.data.tokenise import train_bpe
from ray_jobs.evaluate.language_model import Answer, LanguageModel, Messages
from tests.chat_server import ChatServer
from tests.moe.conftest import TINY

NEEDS_BUBBLEWRAP = pytest.mark.skipif(
    shutil.which("bwrap") is None, reason="bubblewrap is not installed: run `make system-packages`"
)

WriteRows = Callable[[str, Sequence[Any]], str]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    directory = tmp_path_factory.mktemp("tokenizer")
    train_bpe(["What is 3 plus 1? It is 4.\n#### 4"] * 5, 300, directory)
    return PreTrainedTokenizerFast.from_pretrained(directory)


def model_of(tokenizer: PreTrainedTokenizerFast, **fields: Any) -> HybridModel:
    torch.set_num_threads(1)
    model = HybridModel(replace(TINY, vocab_size=len(tokenizer), initializer_range=0.5), **fields)
    initialize(model, seed=0)
    return model


@pytest.fixture
def language_model(tokenizer: PreTrainedTokenizerFast) -> LanguageModel:
    return LanguageModel(model_of(tokenizer), tokenizer, batch_size=2)


@pytest.fixture
def scripted(language_model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> Callable[..., LanguageModel]:
    """A model that says what a test wants to hear; how it generates is tested elsewhere."""

    def script(reply: Callable[[Messages], str]) -> LanguageModel:
        def answer(_: LanguageModel, conversations: Sequence[Messages], *_settings: Any) -> list[Answer]:
            return [Answer(reply(messages), "stop") for messages in conversations]

        monkeypatch.setattr(LanguageModel, "answer", answer)
        return language_model

    return script


@pytest.fixture
def write_lines(tmp_path: Path) -> WriteRows:
    def write(name: str, rows: Sequence[Any]) -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return f"file://{path}"

    return write


@pytest.fixture
def judge_server() -> Iterator[ChatServer]:
    server = ChatServer()
    yield server
    server.close()
