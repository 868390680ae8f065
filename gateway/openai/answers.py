"""What the OpenAI door answers to a body, for whoever asks: a caller at the door, or a job that has none.

Decides the way from a body to its answer: what is asked, whether this key may, which version, whether the model is for it.
Knows no gRPC context, and counts nothing.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from time import perf_counter

from gateway.auto import AUTO, Needs
from gateway.callers import Caller
from gateway.exchange import Exchange
from gateway.openai.codec import signature_of
from gateway.openai.embeddings import rendered, vectors
from gateway.openai.errors import AnswerCutShort, RequestRefused, UrlUnknown
from gateway.openai.estimates import prompt_tokens_of, text_tokens, vectors_tokens
from gateway.openai.events import Title
from gateway.openai.pieces import Piece
from gateway.openai.requests import text_asked, vectors_asked
from gateway.openai.text import TASKS, answers, check_task, check_text, session_of
from gateway.openai.types import Mesh, Style, TextAsked, VectorsAsked
from gateway.openai.wholes import Gathered
from placement.types import Request
from runtime.errors import Internal
from runtime.ids import ModelName, ModelVersion

_IDS = {Style.CHAT: "chatcmpl-", Style.COMPLETION: "cmpl-"}
_STYLES = {"/v1/chat/completions": Style.CHAT, "/v1/completions": Style.COMPLETION}
_EMBEDDINGS = "/v1/embeddings"
PATHS = (*_STYLES, _EMBEDDINGS)
"""What can be asked without anybody waiting for it."""


@dataclass(frozen=True, slots=True)
class Begun:
    """A request for text on its way to an answer."""

    style: Style
    asked: TextAsked
    exchange: Exchange
    pieces: AsyncGenerator[Piece, None]
    """Not asked for yet. Close it when leaving early."""

    def title(self) -> Title:
        """Once a piece came: then it is known who answers."""
        asked, answering = self.asked, self.exchange.model
        model = asked.name if answering in ("", asked.model) else answering
        return Title(_IDS[self.style] + uuid.uuid4().hex, int(time.time()), model)


class Answers:
    """Belongs to one event loop. Every exchange given has been let in: it has a caller."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    async def begin_text(self, style: Style, asked: TextAsked, exchange: Exchange) -> Begun:
        """Raises what a refusal says."""
        mesh, caller = self._mesh, caller_of(exchange)
        exchange.streamed = asked.stream
        named = asked.model
        asked = self._meant(style, asked, caller)
        version = await self._admitted(asked, exchange, text_tokens(asked), session_of(asked, caller.key.tenant))
        exchange.asked = named
        check_text(mesh.fleet, style, asked, version)
        region = mesh.regions.of(caller.headers, caller.address)
        return Begun(style, asked, exchange, answers(mesh.dispatch, asked, version, caller.call(), exchange, region))

    async def vectors(self, asked: VectorsAsked, exchange: Exchange) -> bytes:
        """Raises what a refusal says."""
        mesh, caller = self._mesh, caller_of(exchange)
        version = await self._admitted(asked, exchange, vectors_tokens(asked))
        region, asked_s = mesh.regions.of(caller.headers, caller.address), perf_counter()
        await mesh.dispatch.warm(Request(ModelName(asked.model), version, region), caller.call())
        check_task(mesh.fleet, asked.model, version, ("embedding",))
        version = mesh.copies.chosen(asked.model, version)
        signature = signature_of(await mesh.copies.metadata(asked.model, version))
        max_rows = min((copy.max_batch_size for _, copy in mesh.fleet.copies(asked.model, version)), default=0)
        found = await vectors(mesh.dispatch, asked, version, signature, max_rows, caller.call(), exchange, region)
        exchange.waited_s = perf_counter() - asked_s
        model = asked.name if exchange.model in ("", asked.model) else exchange.model
        return await rendered(asked, model, found)

    async def at(self, path: str, body: bytes, exchange: Exchange) -> bytes:
        """The whole answer of one of `PATHS` to this body. Raises UrlUnknown, and what a refusal says."""
        asked = asked_at(path, body)
        if isinstance(asked, VectorsAsked):
            return await self.vectors(asked, exchange)
        return await whole(await self.begin_text(_STYLES[path], asked, exchange))

    async def check(self, path: str, body: bytes, exchange: Exchange) -> None:
        """Raises what `at` would refuse at once."""
        asked, mesh, caller = asked_at(path, body), self._mesh, caller_of(exchange)
        exchange.asked = exchange.model = asked.model
        if not isinstance(asked, VectorsAsked):
            asked = self._meant(_STYLES[path], asked, caller)
        caller.key.authorise_call(asked.model)
        version = await mesh.targets.found(caller.key, asked.model, asked.wanted, deadline_s=caller.deadline_s)
        if isinstance(asked, VectorsAsked):
            check_task(mesh.fleet, asked.model, version, ("embedding",))
        else:
            check_text(mesh.fleet, _STYLES[path], asked, version)

    def _meant(self, style: Style, asked: TextAsked, caller: Caller) -> TextAsked:
        """With a model's own name, where the caller leaves the choice to us."""
        caller.key.require_infer()
        prompt_tokens = prompt_tokens_of(asked) if asked.model == AUTO else 0
        needs = Needs(TASKS[style], frozenset(asked.needs), prompt_tokens, asked.max_tokens)
        chosen = self._mesh.auto.chosen(caller.key, asked.model, needs)
        return asked if chosen == asked.model else replace(asked, model=chosen)

    async def _admitted(
        self, asked: TextAsked | VectorsAsked, exchange: Exchange, tokens: int, session: str = ""
    ) -> ModelVersion:
        """The version it gets, of a model that its caller may ask now. `tokens`: what it is thought to come to."""
        caller = caller_of(exchange)
        exchange.asked = exchange.model = asked.model
        caller.key.authorise_call(asked.model)
        await self._mesh.exchanges.admit(exchange, asked.model, tokens)
        return await self._mesh.targets.found(caller.key, asked.model, asked.wanted, session, caller.deadline_s)


def caller_of(exchange: Exchange) -> Caller:
    """Who asks. Raises Internal where nobody was let in: a door forgot to."""
    if exchange.caller is None:
        raise Internal("a request was to be answered before its caller was let in")
    return exchange.caller


def asked_at(path: str, body: bytes) -> TextAsked | VectorsAsked:
    """Raises UrlUnknown, RequestRefused, BodyTooLarge."""
    if path == _EMBEDDINGS:
        return vectors_asked(body)
    if path not in _STYLES:
        raise UrlUnknown(f"{path[:200]!r} cannot be asked this way; these can: {', '.join(PATHS)}")
    asked = text_asked(_STYLES[path], body)
    if asked.stream:
        raise RequestRefused(
            "'stream' is true, and nobody waits for the answer's events; leave it out",
            param="stream",
            fault="unsupported_value",
        )
    return asked


async def whole(begun: Begun) -> bytes:
    """The answer in one. Raises what the pieces raise, and AnswerCutShort."""
    gathered, asked_s = Gathered(begun.style, begun.asked), perf_counter()
    async with aclosing(begun.pieces) as given:
        async for piece in given:
            gathered.take(piece)
            if gathered.whole:
                begun.exchange.waited_s = perf_counter() - asked_s
                return gathered.rendered(begun.title())
    raise AnswerCutShort("the worker's answer ended before its end was said; send the request again")
