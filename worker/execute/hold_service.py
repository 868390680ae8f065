"""The part of WorkerService that keeps places: HoldSlot and ReleaseSlot, for schedulers alone.

A servicer: authorises, checks fields, looks for the model, passes on. Which holds get a place, and when they end, is
`worker.holds`' question. Whoever asked and went away before a place came has withdrawn.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import grpc
import grpc.aio
from penstock.worker.v1 import worker_pb2

from runtime.errors import FailedPrecondition, InvalidArgument, PenstockError
from runtime.identity import Role
from worker.batching.queue import queue_places
from worker.copies import LoadedModel
from worker.execute.frames import load_message
from worker.execute.model_service import Authorise
from worker.holds import Hold, HoldId
from worker.inference import TableInference
from worker.models import ModelTable, UnknownModel

MAX_WAIT_S = 600.0
MAX_TTL_S = 600.0
MAX_NAME = 256

_HOLD_ID = re.compile(r"[0-9a-f]{32}")
Context = grpc.aio.ServicerContext[Any, Any]
Copies = Callable[[], Iterable[worker_pb2.ModelCopy]]


class HoldService:
    """Handlers over one worker's holds."""

    def __init__(self, inference: TableInference, table: ModelTable) -> None:
        self._inference, self._holds, self._table = inference, inference.holds, table

    def handlers(
        self, authorise: Authorise, refusal: Callable[[], PenstockError | None], copies: Copies
    ) -> Mapping[str, grpc.RpcMethodHandler[Any, Any]]:
        """By method. `refusal`: why nothing new is taken; `copies`: every model here, in whatever state."""

        async def hold(request: worker_pb2.HoldSlotRequest, context: Context) -> worker_pb2.HoldSlotResponse:
            authorise(context, (Role.SCHEDULER,))
            if (error := refusal()) is not None:
                raise error
            return await self._hold(request, copies)

        async def release(request: worker_pb2.ReleaseSlotRequest, context: Context) -> worker_pb2.ReleaseSlotResponse:
            authorise(context, (Role.SCHEDULER,))
            self._holds.release(_hold_id(request.hold_id))
            return worker_pb2.ReleaseSlotResponse()

        return {
            "HoldSlot": grpc.unary_unary_rpc_method_handler(
                hold,
                request_deserializer=worker_pb2.HoldSlotRequest.FromString,
                response_serializer=worker_pb2.HoldSlotResponse.SerializeToString,
            ),
            "ReleaseSlot": grpc.unary_unary_rpc_method_handler(
                release,
                request_deserializer=worker_pb2.ReleaseSlotRequest.FromString,
                response_serializer=worker_pb2.ReleaseSlotResponse.SerializeToString,
            ),
        }

    def expect(self, hold_id: str) -> None:
        """Its request has begun to come."""
        self._holds.expect(hold_id)

    def forgo(self, hold_id: str) -> None:
        """Its request is over, be it that it never entered."""
        self._holds.forgo(hold_id)

    def close(self, why: PenstockError) -> None:
        """No place is kept from now on."""
        self._holds.close(why)

    async def _hold(self, request: worker_pb2.HoldSlotRequest, copies: Copies) -> worker_pb2.HoldSlotResponse:
        for what, name in (("model", request.model), ("version", request.version), ("tenant", request.tenant)):
            if len(name) > MAX_NAME:
                raise InvalidArgument(f"{what} has {len(name)} characters; up to {MAX_NAME} are taken")
        wait_s = _seconds("wait_ms", request.wait_ms, MAX_WAIT_S)
        loaded = self._ready(request.model, request.version, copies)
        asked = Hold(
            _hold_id(request.hold_id),
            loaded.spec.model,
            loaded.spec.version,
            request.tenant,
            _ttl_s(request.ttl_ms),
            _token(request.token_sha256),
        )
        await self._holds.hold(asked, wait_s=wait_s, room=partial(_room, loaded))
        try:
            self._ready(asked.model, asked.version, copies)
        except PenstockError:  # it was unloaded while the hold waited
            self._holds.release(asked.hold_id)
            raise
        load = load_message(self._inference.load, draining=False)
        return worker_pb2.HoldSlotResponse(version=asked.version, load=load)

    def _ready(self, model: str, version: str, copies: Copies) -> LoadedModel:
        """Raises FailedPrecondition where a copy is here that does not answer, UnknownModel where there is none."""
        try:
            return self._table.get(model, version)
        except UnknownModel:
            for copy in copies():
                if copy.model == model and version in ("", copy.version) and copy.state != worker_pb2.MODEL_STATE_READY:
                    state = worker_pb2.ModelState.Name(copy.state).removeprefix("MODEL_STATE_")
                    raise FailedPrecondition(
                        f"model {model!r} version {copy.version} is {state} here, not READY: {copy.reason or 'no reason told'}"
                    ) from None
            raise


def _room(loaded: LoadedModel) -> float:
    return queue_places(loaded.spec) - loaded.pending_requests


def _hold_id(hold_id: str) -> HoldId:
    if not _HOLD_ID.fullmatch(hold_id):
        raise InvalidArgument(f"hold_id {hold_id[:80]!r} is not 128 bits in hex; 32 lower-case hex digits are expected")
    return HoldId(hold_id)


def _seconds(name: str, value_ms: int, most_s: float) -> float:
    if value_ms > most_s * 1000:
        raise InvalidArgument(f"{name} is {value_ms}; up to {most_s * 1000:.0f} is taken")
    return value_ms / 1000


def _ttl_s(ttl_ms: int) -> float:
    if not ttl_ms:
        raise InvalidArgument("ttl_ms is 0; say how long the place is to be kept")
    return _seconds("ttl_ms", ttl_ms, MAX_TTL_S)


def _token(token_sha256: bytes) -> bytes:
    if len(token_sha256) not in (0, 32):
        raise InvalidArgument(f"token_sha256 has {len(token_sha256)} bytes; 32 are expected, or none")
    return token_sha256
