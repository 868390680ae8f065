"""Text from the fleet for Triton's generate extension: one request routed, its answer in pieces.

Decides whether a model is for it. Owns nothing.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from gateway.auto import Needs
from gateway.callers import Caller
from gateway.exchange import Exchange
from gateway.links.types import Method
from gateway.mesh import Mesh
from gateway.rest.errors import AnswerCutShort, RequestRefused
from gateway.rest.generation_codec import TextAsked, TextPiece, generate_request, piece_of
from gateway.rest.types import RestAsked
from placement.routing.prefixes import BLOCK_BYTES, MAX_BLOCKS, hashes_of
from placement.types import Request
from runtime.ids import ModelName

_CHAT = "chat"
_TASKS = (_CHAT, "completion")
_PREFIX_CHARACTERS = BLOCK_BYTES * MAX_BLOCKS
_CHARACTERS_PER_TOKEN = 4
"""About; what a limit is charged is what the engine says in the end."""


class Generations:
    """Belongs to one event loop."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    async def begin(
        self, caller: Caller, path: RestAsked, asked: TextAsked, exchange: Exchange
    ) -> AsyncGenerator[TextPiece, None]:
        """The pieces up to the last one, not asked for yet; close it when leaving early. Raises what a refusal says."""
        mesh, key = self._mesh, caller.key
        key.require_infer()
        given, prompt_tokens = asked.parameters.get("max_tokens", 0), len(asked.text) // _CHARACTERS_PER_TOKEN
        most = given if isinstance(given, int) else 0
        model = mesh.auto.chosen(key, path.model, Needs(_TASKS, prompt_tokens=prompt_tokens, answer_tokens=most))
        key.authorise_call(model)
        await mesh.exchanges.admit(exchange, model, prompt_tokens + most)
        version = await mesh.targets.found(key, model, path.version, deadline_s=caller.deadline_s)
        request = Request(ModelName(model), version, mesh.regions.of(caller.headers, caller.address))
        tasks = self._tasks(request)
        if not tasks:
            await mesh.dispatch.warm(request, caller.call())
            tasks = self._tasks(request)
        if tasks.isdisjoint(_TASKS):
            raise RequestRefused(
                f"model {model!r} has task {min(tasks, default='')!r} and generates no text; POST /v2/models/…/infer is for it"
            )
        chat = _CHAT in tasks and asked.parameters.get("chat_template", True) is True
        prefix = _prefix(asked.text, model, key.tenant, chat=chat)
        request = Request(request.model, version, request.region, prefix=prefix)
        return self._pieces(caller, request, generate_request(model, asked, chat=chat), exchange)

    async def _pieces(
        self, caller: Caller, request: Request, payload: bytes, exchange: Exchange
    ) -> AsyncGenerator[TextPiece, None]:
        streaming = self._mesh.dispatch.stream(Method.GENERATE, request, payload, caller.call(), exchange)
        async with aclosing(streaming) as answers:
            async for answer in answers:
                piece = piece_of(answer)
                exchange.answering(len(answer))
                if piece.finish:
                    exchange.used(piece.prompt_tokens, piece.completion_tokens)
                yield piece
                if piece.finish:
                    return
        raise AnswerCutShort("the worker's answer ended before its end was said; send the request again")

    def _tasks(self, request: Request) -> set[str]:
        """Of the copies that are known of."""
        return {
            copy.task for _, copy in self._mesh.fleet.view.copies_of(request.model) if request.version in ("", copy.version)
        }


async def whole(pieces: AsyncGenerator[TextPiece, None]) -> TextPiece:
    """All pieces as one."""
    texts: list[str] = []
    logprobs: list[object] = []
    async with aclosing(pieces):
        async for piece in pieces:
            texts.append(piece.text)
            logprobs += piece.logprobs
            if piece.finish:
                return TextPiece("".join(texts), tuple(logprobs), piece.finish, piece.prompt_tokens, piece.completion_tokens)
    raise AnswerCutShort("the worker's answer ended before its end was said; send the request again")


def _prefix(text: str, model: str, tenant: str, *, chat: bool) -> tuple[int, ...]:
    """As the OpenAI door has it: the same text has the same beginning in memory, whoever asked for it."""
    beginning = text[:_PREFIX_CHARACTERS]
    return hashes_of(f"user\0{beginning}\0" if chat else beginning, salt=f"{tenant}\0{model}")
