"""Models behind somebody's HTTP API: vLLM, EXO, Ollama, OpenAI and whatever speaks as it does, or Google's Gemini.

Owns how such a model is opened: its `upstream.toml`, the API it speaks, whether the worker may call that host and with which
key. An upstream knows no token ids of ours: pieces carry text alone, and a generation that another worker began cannot be gone
on with, since no API says that a text given as the beginning of an answer will be continued and not answered.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from runtime.errors import Code, PenstockError
from worker.engine import Array, ModelRefused, Piece, TextRequest
from worker.engines.upstream.api import Api, Reading
from worker.engines.upstream.config import UpstreamConfig, read_config
from worker.engines.upstream.errors import UpstreamGarbled, UpstreamModelNotFound
from worker.engines.upstream.gemini import Gemini
from worker.engines.upstream.http import UpstreamClient
from worker.engines.upstream.json import Malformed
from worker.engines.upstream.openai import OpenAi
from worker.remote.upstream_hosts import origin_of
from worker.remote.upstream_keys import UpstreamAccess
from worker.types import ModelSpec, Task

_TASKS = (Task.CHAT, Task.COMPLETION, Task.EMBEDDING)


class CannotResume(PenstockError, code=Code.FAILED_PRECONDITION, reason="UPSTREAM_CANNOT_RESUME"):
    """Tokens of another worker mean nothing to an upstream."""


class UpstreamEngine:
    """Implements `worker.engine.RemoteEngine`."""

    def __init__(self, config: UpstreamConfig, api: Api, client: UpstreamClient) -> None:
        self.max_concurrency = config.max_concurrency
        self.capabilities, self.context_tokens = api.capabilities, 0
        self._config = config
        self._api = api
        self._client = client

    async def generate(self, request: TextRequest, *, deadline_s: float | None = None) -> AsyncGenerator[Piece, None]:
        """Pieces as they come. The connection is given back, or closed where the answer was not whole, before the last one."""
        if request.resume_token_ids:
            raise CannotResume("this model runs at an upstream, which cannot go on with another's tokens; send it anew")
        reading, call = self._api.reading(request), self._api.generation(request)
        if request.whole and not self._config.always_stream:
            raw = await self._client.whole(call, deadline_s, self._config.patience.total_s)
            pieces, failure = _taken(reading, [raw])
            if failure is not None:
                raise failure
            yield joined([*pieces, reading.last()])
            return
        async with self._client.streaming(call, deadline_s) as batches:
            try:
                async for batch in batches:
                    pieces, failure = _taken(reading, batch)
                    if pieces:
                        yield joined(pieces)
                        batches.gather()
                    if failure is not None:
                        raise failure
                    if reading.finished:
                        batches.hurry()
            except PenstockError:
                if not reading.finished:  # else only the number of tokens is missing
                    raise
        yield reading.last()

    async def embed(self, texts: Sequence[str], *, deadline_s: float | None = None) -> Array:
        """float32 [texts, width], in as few calls as the API allows, one after the other."""
        arrays = []
        for start in range(0, len(texts), self._api.max_texts):
            part = texts[start : start + self._api.max_texts]
            raw = await self._client.whole(self._api.embedding(part), deadline_s)
            try:
                arrays.append(self._api.vectors(raw, len(part)))
            except Malformed as error:
                raise _garbled(error) from error
        if len({array.shape[1] for array in arrays}) != 1:
            raise UpstreamGarbled("the upstream gave embeddings of several widths for one request")
        return np.concatenate(arrays)

    async def check(self) -> None:
        """Ask for its models, where the configuration says so. Raises what keeps it from answering."""
        if not self._config.check:
            return
        raw = await self._client.whole(self._api.models(), None)
        try:
            known = self._api.has_model(raw)
        except Malformed as error:
            raise _garbled(error) from error
        if not known:
            raise UpstreamModelNotFound(
                f"the upstream has no model {self._config.model!r}; an operator has to look at upstream.toml"
            )

    async def aclose(self) -> None:
        await self._client.aclose()


def open_upstream(spec: ModelSpec, folder: Path, access: UpstreamAccess | None = None) -> UpstreamEngine:
    """Blocks: reads files and loads certificates. Asks nobody. Raises ModelRefused, HostRefused, KeysRefused."""
    where = f"model {spec.model!r}"
    if spec.task not in _TASKS:
        raise ModelRefused(
            f"{where} has task {spec.task.value!r}; an upstream serves: {', '.join(task.value for task in _TASKS)}"
        )
    config = read_config(folder)
    secret = (access or UpstreamAccess()).admit(origin_of(config.base_url, where), config.key, where)
    key = secret.key if secret else ""
    api: Api = Gemini(config, key) if config.api == "gemini" else OpenAi(config, spec.task, key)
    return UpstreamEngine(config, api, UpstreamClient(config, api.headers(key), key))


def _taken(reading: Reading, events: Sequence[bytes]) -> tuple[list[Piece], PenstockError | None]:
    """The pieces that events hold, up to the one that tells of a failure."""
    pieces: list[Piece] = []
    try:
        for event in events:
            if (piece := reading.take(event)) is not None:
                pieces.append(piece)  # noqa: PERF401 (those before a failure count)
    except Malformed as error:
        return pieces, _garbled(error)
    except PenstockError as error:
        return pieces, error
    return pieces, None


def joined(pieces: Sequence[Piece]) -> Piece:
    """Pieces that came together, as one; the last may have a finish."""
    if len(pieces) == 1:
        return pieces[0]
    return replace(
        pieces[-1],
        text="".join(piece.text for piece in pieces),
        logprobs=tuple(each for piece in pieces for each in piece.logprobs),
        tool_calls=tuple(each for piece in pieces for each in piece.tool_calls),
    )


def _garbled(error: Malformed) -> UpstreamGarbled:
    return UpstreamGarbled(f"the upstream's answer is not what its API says: {error}; report it to whoever runs it")
