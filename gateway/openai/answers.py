"""What the OpenAI door answers to a body, for whoever asks: a caller at the door, or a job that has none.

Decides the way from a body to its answer: what is asked, whether this key may, which version, whether the model is for it.
Knows no gRPC context, and counts nothing.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from gateway.callers import Caller
from gateway.openai.codec import signature_of
from gateway.openai.embeddings import rendered, vectors
from gateway.openai.errors import AnswerCutShort, RequestRefused, UrlUnknown
from gateway.openai.events import TextAnswer
from gateway.openai.requests import text_asked, vectors_asked
from gateway.openai.text import check_task, check_text, pieces, session_of
from gateway.openai.types import Mesh, Piece, Style, TextAsked, VectorsAsked
from placement.types import Request
from runtime.ids import ModelName

_IDS = {Style.CHAT: "chatcmpl-", Style.COMPLETION: "cmpl-"}
_STYLES = {"/v1/chat/completions": Style.CHAT, "/v1/completions": Style.COMPLETION}
_EMBEDDINGS = "/v1/embeddings"
PATHS = (*_STYLES, _EMBEDDINGS)
"""What can be asked without anybody waiting for it."""


@dataclass(slots=True)
class Course:
    """What is known of a request while it is being answered."""

    model: str = ""
    version: str = ""
    """The version that was asked last."""

    def granted(self, version: str) -> None:
        """This version was asked; what leaves from now on is its answer."""
        self.version = version


class Answers:
    """Belongs to one event loop."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    async def begin_text(
        self, style: Style, asked: TextAsked, caller: Caller, course: Course
    ) -> tuple[AsyncGenerator[Piece, None], TextAnswer]:
        """The answer's pieces, not yet asked for, and how they are written. Raises what a refusal says."""
        course.model = asked.model
        caller.key.authorise_call(asked.model)
        session = session_of(asked, caller.key.tenant)
        version = await self._mesh.targets.found(caller.key, asked.model, asked.wanted, session, caller.deadline_s)
        check_text(self._mesh.fleet, style, asked.model, version)
        answer = TextAnswer(style, asked, _IDS[style] + uuid.uuid4().hex, int(time.time()))
        region = self._mesh.regions.of(caller.headers, caller.address)
        return pieces(self._mesh.router, asked, version, caller.call(), course.granted, region), answer

    async def vectors(self, asked: VectorsAsked, caller: Caller, course: Course) -> bytes:
        """Raises what a refusal says."""
        mesh, course.model = self._mesh, asked.model
        caller.key.authorise_call(asked.model)
        version = await mesh.targets.found(caller.key, asked.model, asked.wanted, deadline_s=caller.deadline_s)
        region = mesh.regions.of(caller.headers, caller.address)
        await mesh.router.warm(Request(ModelName(asked.model), version, region), caller.call())
        check_task(mesh.fleet, asked.model, version, ("embedding",))
        course.version = version = mesh.copies.chosen(asked.model, version)
        signature = signature_of(await mesh.copies.metadata(asked.model, version))
        max_rows = min((copy.max_batch_size for _, copy in mesh.fleet.copies(asked.model, version)), default=0)
        found = await vectors(mesh.router, asked, version, signature, max_rows, caller.call(), region)
        return await rendered(asked, found)

    async def at(self, path: str, body: bytes, caller: Caller, course: Course) -> bytes:
        """The whole answer of one of `PATHS` to this body. Raises UrlUnknown, and what a refusal says."""
        asked = asked_at(path, body)
        if isinstance(asked, VectorsAsked):
            return await self.vectors(asked, caller, course)
        return await whole(*await self.begin_text(_STYLES[path], asked, caller, course))

    async def check(self, path: str, body: bytes, caller: Caller, course: Course) -> None:
        """Raises what `at` would refuse at once."""
        asked, mesh = asked_at(path, body), self._mesh
        course.model = asked.model
        caller.key.authorise_call(asked.model)
        version = await mesh.targets.found(caller.key, asked.model, asked.wanted, deadline_s=caller.deadline_s)
        if isinstance(asked, VectorsAsked):
            check_task(mesh.fleet, asked.model, version, ("embedding",))
        else:
            check_text(mesh.fleet, _STYLES[path], asked.model, version)


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


async def whole(given: AsyncGenerator[Piece, None], answer: TextAnswer) -> bytes:
    """The answer in one. Raises what the pieces raise, and AnswerCutShort."""
    texts: list[str] = []
    async with aclosing(given):
        async for piece in given:
            texts.append(piece.text)
            if piece.finish is not None:
                return answer.whole("".join(texts), piece.finish, piece.usage)
    raise AnswerCutShort("the worker's answer ended before its end was said; send the request again")
