"""`client.models`, blocking and awaited: what jobs can start from, and names for checkpoints."""

from __future__ import annotations

from urllib.parse import quote

from service.client.calls import Call, model, nothing
from service.client.runs import AsyncSender, Sender
from service.openai_api.forms import OpenAIList, OpenAIModel
from service.spec.registry import NewModel, RegisteredModel

_PATH = "/v1/models"
_read_list, _read, _read_registered = model(OpenAIList[OpenAIModel]), model(OpenAIModel), model(RegisteredModel)


def _list() -> Call[OpenAIList[OpenAIModel]]:
    return Call("GET", _PATH, _read_list)


def _get(model_id: str) -> Call[OpenAIModel]:
    return Call("GET", f"{_PATH}/{quote(model_id, safe='')}", _read)


def _register(name: str, uri: str) -> Call[RegisteredModel]:
    return Call("POST", _PATH, _read_registered, json=NewModel(name=name, uri=uri).model_dump(mode="json"))


def _delete(name: str) -> Call[None]:
    return Call("DELETE", f"{_PATH}/{quote(name, safe='')}", nothing)


class Models:
    """`client.models`.

    Args:
        client: sends the calls.
    """

    def __init__(self, client: Sender) -> None:
        self._client = client

    def list(self) -> list[OpenAIModel]:
        """Presets, registered checkpoints, and what fine-tuning jobs made."""
        return self._client.send(_list()).data

    def get(self, model_id: str) -> OpenAIModel:
        """One of them."""
        return self._client.send(_get(model_id))

    def register(self, name: str, uri: str) -> RegisteredModel:
        """Give a checkpoint a name; registering the same again changes nothing.

        Args:
            name: that fine-tuning jobs call it by.
            uri: absolute path or URL of its directory, as the cluster sees it.
        """
        return self._client.send(_register(name, uri))

    def delete(self, name: str) -> None:
        """Forget a registered name; the checkpoint stays."""
        self._client.send(_delete(name))


class AsyncModels:
    """As `Models`, awaited."""

    def __init__(self, client: AsyncSender) -> None:
        self._client = client

    async def list(self) -> list[OpenAIModel]:
        """As `Models.list`."""
        return (await self._client.send(_list())).data

    async def get(self, model_id: str) -> OpenAIModel:
        """As `Models.get`."""
        return await self._client.send(_get(model_id))

    async def register(self, name: str, uri: str) -> RegisteredModel:
        """As `Models.register`."""
        return await self._client.send(_register(name, uri))

    async def delete(self, name: str) -> None:
        """As `Models.delete`."""
        await self._client.send(_delete(name))
