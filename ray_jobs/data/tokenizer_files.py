"""The tokenizer directory of a corpus: trained on its text, or copied from where the spec says.

Either way it gets the chat template that the data was rendered with, so that a prompt at inference looks as it did in
training.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs

from ray_jobs.data.sources import digest
from ray_jobs.data.tokenise import CHAT_TEMPLATE, ChatTokenizer, train_bpe
from ray_jobs.run_directory import write_file
from service.errors import SourceNotFoundError
from service.spec.model import CheckpointBase, ModelSpec, PretrainedTokenizer, TrainedTokenizer

_TOKENIZER_FILE = "tokenizer.json"
_TEMPLATE_FILE = "chat_template.jinja"


def tokenizer_identity(model: ModelSpec) -> dict[str, Any]:
    """All that decides the tokenizer, apart from the text it is trained on.

    Raises:
        SourceNotFoundError: there is no tokenizer where the spec says.
    """
    if isinstance(model.tokenizer, TrainedTokenizer):
        return model.tokenizer.model_dump()
    urls = _given_files(model)
    return {"kind": "pretrained", "files": {url.rpartition("/")[2]: digest(url) for url in urls}}


def make_tokenizer(model: ModelSpec, texts: Iterable[str], url: str) -> None:
    """Write the tokenizer directory.

    Args:
        model: says which tokenizer.
        texts: to train one on; not touched when one is given.
        url: directory to write.

    Raises:
        InvalidSpecError: the given tokenizer lacks a token of the chat template.
    """
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        if isinstance(model.tokenizer, TrainedTokenizer):
            train_bpe(texts, model.tokenizer.vocab_size, directory)
        else:
            for given in _given_files(model):
                filesystem, path = url_to_fs(given)
                (directory / path.rpartition("/")[2]).write_bytes(filesystem.cat_file(path))
            (directory / _TEMPLATE_FILE).write_text(CHAT_TEMPLATE)
        ChatTokenizer(directory)
        for file in sorted(directory.iterdir()):
            write_file(f"{url}/{file.name}", file.read_bytes())


def _given_files(model: ModelSpec) -> list[str]:
    """Files of the tokenizer that the spec names; weights beside them are left alone."""
    if isinstance(model.tokenizer, PretrainedTokenizer):
        directory, field = model.tokenizer.path, "model.tokenizer"
    else:
        assert isinstance(model.base, CheckpointBase), "the spec gives every preset a tokenizer"
        directory, field = model.base.path, "model.base"
    filesystem, path = url_to_fs(directory.rstrip("/"))
    if not filesystem.isfile(f"{path}/{_TOKENIZER_FILE}"):
        raise SourceNotFoundError(f"no such file: {directory}/{_TOKENIZER_FILE}", field)
    return [filesystem.unstrip_protocol(match) for match in sorted(filesystem.glob(f"{path}/*token*.json"))]
