"""One inference for a caller that was let in: which version of which model it means, and its answer.

What ModelInfer and its HTTP twin share. Never parses tensors, never ends an exchange.
"""

from __future__ import annotations

from gateway.callers import Caller
from gateway.exchange import Exchange
from gateway.kserve.sequences import SEQUENCE_END, request_of
from gateway.mesh import Mesh
from gateway.wire import RequestHead


class Inference:
    """Belongs to one event loop."""

    def __init__(self, mesh: Mesh) -> None:
        self._exchanges, self._dispatch, self._fleet = mesh.exchanges, mesh.dispatch, mesh.fleet
        self._targets, self._regions = mesh.targets, mesh.regions

    async def answer(self, caller: Caller, head: RequestHead, payload: bytes, exchange: Exchange) -> bytes:
        """inference.ModelInferRequest → ModelInferResponse; `head` is the payload's. Raises what refuses it, or the worker."""
        model, key, session = head.model, caller.key, head.session_key
        key.authorise_call(model)
        await self._exchanges.admit(exchange, model)
        version = self._targets.find(key, model, head.version, session)
        if version is None:
            version = await self._targets.found(key, model, head.version, session, caller.deadline_s)
        target = request_of(head, version, self._regions.of(caller.headers, caller.address), key.tenant)
        answer = await self._dispatch.infer(target, payload, caller.call(head.priority), exchange)
        exchange.answering(len(answer))
        if session and head.parameters.get(SEQUENCE_END):
            self._fleet.state.forget_session(target.model, target.session_key)
        return answer
