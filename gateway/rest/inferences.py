"""POST …/infer for a caller that was let in: from the body as it came to the body that is answered.

Decides how a body is to be read: JSON alone, JSON and binary data after it, or nothing but the one input's bytes.
"""

from __future__ import annotations

from dataclasses import replace

from gateway.callers import Caller
from gateway.exchange import Exchange
from gateway.kserve.inference import Inference
from gateway.mesh import Mesh
from gateway.rest.answers_codec import inferred
from gateway.rest.codec import infer_asked, raw_asked, signature_of
from gateway.rest.compression import Unpacking
from gateway.rest.errors import RequestRefused
from gateway.rest.types import HEADER_LENGTH, Body, Came, InferAsked, RestAsked
from placement.types import Request
from runtime.ids import ModelName

_ENCODING = "content-encoding"


class Inferences:
    """Belongs to one event loop."""

    def __init__(self, mesh: Mesh, max_bytes: int) -> None:
        self._mesh, self._inference, self._unpacking = mesh, Inference(mesh), Unpacking(max_bytes)

    async def unpacked(self, caller: Caller, request: Came) -> RestAsked:
        """What is asked, its body unpacked. Raises EnvelopeMalformed, RequestRefused, BodyTooLarge."""
        asked = request.read()
        encoding = caller.headers.get(_ENCODING, "")
        if not encoding or not asked.body:
            return asked
        return replace(asked, body=await self._unpacking.unpacked(asked.body, str(encoding)))

    async def answer(self, caller: Caller, request: Came, exchange: Exchange) -> Body:
        """Raises what refuses the request, or what the worker answered."""
        path = await self.unpacked(caller, request)
        caller.key.authorise_call(path.model)  # before its body is parsed
        length = _header_length(caller)
        if length == 0:
            asked = await self._bare(caller, path)
        else:
            asked = infer_asked(path.model, path.version, path.body, length)
        return await inferred(await self._inference.answer(caller, asked.head, asked.payload, exchange), asked)

    async def _bare(self, caller: Caller, path: RestAsked) -> InferAsked:
        """The model says what the bytes are."""
        mesh, model = self._mesh, path.model
        version = await mesh.targets.found(caller.key, model, path.version, deadline_s=caller.deadline_s)
        region = mesh.regions.of(caller.headers, caller.address)
        await mesh.dispatch.warm(Request(ModelName(model), version, region), caller.call())
        inputs = signature_of(await mesh.copies.metadata(model, mesh.copies.chosen(model, version)))
        if len(inputs) != 1:
            raise RequestRefused(
                f"model {model!r} has {len(inputs)} inputs; a body without JSON is for models with one: send each input's name,"
                " shape and datatype as JSON before the bytes"
            )
        return raw_asked(model, path.version, path.body, inputs[0])


def _header_length(caller: Caller) -> int | None:
    given = caller.headers.get(HEADER_LENGTH)
    if given is None:
        return None
    if not isinstance(given, str) or not given.strip().isdecimal() or len(given) > 18:
        raise RequestRefused(f"{HEADER_LENGTH} is {str(given)[:40]!r}; expected how many bytes of the body are JSON")
    return int(given)
