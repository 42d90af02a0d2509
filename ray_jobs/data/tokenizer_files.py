"""The tokenizer directory of a corpus: trained on its text, or copied from where the spec says.

Data is rendered as ChatML (`ray_jobs.data.tokenise`). A given tokenizer has the two tokens of it, and a chat template
that renders the same, which it keeps, or none, and then gets ours. Any other template is refused and not replaced: a
user who gives one expects the model to be trained with it, and a tokenizer without it is easily given. ChatML's tokens
become beginning and end of a text. So a prompt at inference looks as it did in training, and an answer ends where
training ended it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from ray_jobs.data.tokenise import CHAT_TEMPLATE, ChatTokenizer, train_bpe
from ray_jobs.run_directory import write_file
from service.errors import InvalidSpecError, SourceNotFoundError
from service.rows.chatml import END, START
from service.rows.formats import Conversation, Turn
from service.rows.sources import digest
from service.spec.model import CheckpointBase, ModelSpec, PretrainedTokenizer, TrainedTokenizer

_TOKENIZER_FILE = "tokenizer.json"
_CONFIG_FILE = "tokenizer_config.json"
_LEGACY_CONFIG_FILE = "special_tokens_map.json"
"""Its tokens count for more than those of the config, where there is one."""
_TEMPLATE_FILE = "chat_template.jinja"
_PROBE = (Turn("system", "Be brief. "), Turn("user", "What is  2 + 2?\n"), Turn("assistant", ""), Turn("user", " x"))
"""White space beside every special token, and no reply, for that may be encoded apart."""
_TEMPLATE_PROBES = (
    _PROBE,
    (Turn("user", "Who?"), Turn("assistant", " I.\n"), Turn("tool", "{}"), Turn("assistant", "Done.")),
    (Turn("assistant", "I begin."),),
)
"""All roles; with a system turn and without, for some templates add one."""
_TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)


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
        InvalidSpecError: the given tokenizer lacks a token of ChatML, cannot render it as the data is, or has a chat
            template of another kind.
    """
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        if isinstance(model.tokenizer, TrainedTokenizer):
            train_bpe(texts, model.tokenizer.vocab_size, directory)
        else:
            for given in _given_files(model):
                filesystem, path = url_to_fs(given)
                (directory / path.rpartition("/")[2]).write_bytes(filesystem.cat_file(path))
            ChatTokenizer(directory)  # names a token that is missing, before anything asks for it
            _set_ends(directory)
            _set_template(directory)
        _require_agreement(directory)
        for file in sorted(directory.iterdir()):
            write_file(f"{url}/{file.name}", file.read_bytes())


def _set_ends(directory: Path) -> None:
    """Make the chat template's tokens the beginning and the end of a text, whatever the tokenizer's own were."""
    for path in (directory / _CONFIG_FILE, directory / _LEGACY_CONFIG_FILE):
        if path.exists() or path.name == _CONFIG_FILE:
            document = json.loads(path.read_text()) if path.exists() else {}
            path.write_text(json.dumps(document | {"bos_token": START, "eos_token": END}, indent=2) + "\n")


def _set_template(directory: Path) -> None:
    """Keep a chat template that is ChatML, and write ours where there is none."""
    loaded = PreTrainedTokenizerFast.from_pretrained(directory)
    if loaded.chat_template is None:
        (directory / _TEMPLATE_FILE).write_text(CHAT_TEMPLATE)
        return
    for probe in _TEMPLATE_PROBES:
        expected = "".join(f"{START}{turn.role}\n{turn.content}{END}\n" for turn in probe)
        _require_chatml(loaded, probe, expected, is_prompt=False)
        _require_chatml(loaded, probe, f"{expected}{START}assistant\n", is_prompt=True)


def _require_chatml(loaded: PreTrainedTokenizerFast, probe: Conversation, expected: str, *, is_prompt: bool) -> None:
    messages = [turn._asdict() for turn in probe]
    try:
        text = loaded.apply_chat_template(messages, tokenize=False, add_generation_prompt=is_prompt)
    except _TEMPLATE_ERRORS as error:
        text = f"an error, {error}"
    if text != expected:
        raise InvalidSpecError(
            f"this tokenizer's chat template is not plain ChatML: of {expected!r} it makes {text!r}; "
            "give a copy of the tokenizer without its template, and the data is rendered as ChatML",
            "model.tokenizer",
        )


def _require_agreement(directory: Path) -> None:
    """Render a conversation as the data will be, and as whoever loads the tokenizer will."""
    [rendered] = ChatTokenizer(directory).render([_PROBE])
    loaded = PreTrainedTokenizerFast.from_pretrained(directory)
    if rendered.tokens.tolist() != loaded.apply_chat_template([turn._asdict() for turn in _PROBE], return_dict=False):
        raise InvalidSpecError(
            "this tokenizer renders a conversation otherwise than turn by turn; "
            f"give it a {START} and a {END} that leave the white space beside them alone",
            "model.tokenizer",
        )


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
    # not a glob: the directory's own name may hold any character
    names = sorted(entry.rpartition("/")[2] for entry in filesystem.ls(path, detail=False))
    mine = [name for name in names if ("token" in name and name.endswith(".json")) or name == _TEMPLATE_FILE]
    return [filesystem.unstrip_protocol(f"{path}/{name}") for name in mine]
