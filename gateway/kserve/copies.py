"""Questions about a model that only its workers can answer: metadata, configuration, statistics.

Owns a channel to each worker asked, opened at the first question, and the answers that never change for a digest.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import grpc.aio
from inference import grpc_service_pb2 as kserve
from inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub

from gateway.cache.types import CacheCounts
from gateway.fleet import Fleet
from gateway.kserve.codec import add_cached, summed
from gateway.refusals import ModelCold, unknown_model
from placement.types import ANY_REGION, Copy, Worker
from runtime.errors import Code, PenstockError
from runtime.ids import Digest, ModelName, ModelVersion, WorkerId
from runtime.status import error_of

ANSWER_TIMEOUT_S = 5.0
_REMEMBERED = 1_024
_ASKED_AT_ONCE = 32
_Answer = TypeVar("_Answer")


class CopyInquiry:
    """Belongs to one event loop; `close` it."""

    def __init__(
        self,
        fleet: Fleet,
        open_channel: Callable[[Worker], grpc.aio.Channel],
        cached: Mapping[tuple[ModelName, ModelVersion], CacheCounts] | None = None,
    ) -> None:
        """`cached`: what this gateway's response cache finds, as it is when somebody asks."""
        self._fleet, self._open_channel = fleet, open_channel
        self._cached = {} if cached is None else cached
        self._channels: dict[WorkerId, tuple[str, grpc.aio.Channel]] = {}
        self._remembered: OrderedDict[tuple[str, Digest], Any] = OrderedDict()

    async def metadata(self, name: str, version: str, *, all_versions: bool = False) -> kserve.ModelMetadataResponse:
        """Raises ModelUnknown, ModelCold. `versions` are those ready anywhere in the fleet: this one, or all."""
        chosen = self.chosen(name, version)
        request = kserve.ModelMetadataRequest(name=name, version=chosen)
        answer = kserve.ModelMetadataResponse()
        answer.CopyFrom(await self._once("metadata", name, chosen, lambda stub: stub.ModelMetadata(request, **_LIMIT)))
        known = {copy.version for _, copy in self._fleet.ready(name, "" if all_versions else version)}
        answer.versions[:] = sorted(known, key=lambda each: (len(each), each))
        return answer

    async def config(self, model: str, version: str) -> kserve.ModelConfigResponse:
        """Raises ModelUnknown, ModelCold."""
        chosen = self.chosen(model, version)
        request = kserve.ModelConfigRequest(name=model, version=chosen)
        found: kserve.ModelConfigResponse = await self._once(
            "config", model, chosen, lambda stub: stub.ModelConfig(request, **_LIMIT)
        )
        return found

    async def statistics(self, model: str, version: str, allowed: Callable[[str], bool]) -> kserve.ModelStatisticsResponse:
        """Of every worker that holds a ready copy, added up; an empty model is all that the caller may see."""
        if model:
            self.chosen(model, version)
            holders = {worker.worker_id: worker for worker, _ in self._fleet.ready(model, version)}
        else:
            holders = {worker.worker_id: worker for worker in self._fleet.view.workers.values() if worker.copies}
        request, turn = kserve.ModelStatisticsRequest(name=model, version=version), asyncio.Semaphore(_ASKED_AT_ONCE)

        async def ask(worker: Worker) -> kserve.ModelStatisticsResponse | None:
            async with turn:
                try:
                    return await _answer((await self._stub(worker)).ModelStatistics(request, **_LIMIT))
                except PenstockError as error:
                    if error.code in (Code.UNAVAILABLE, Code.NOT_FOUND, Code.DEADLINE_EXCEEDED):
                        return None  # it left, or unloaded the model, since the view was made
                    raise

        answers = await asyncio.gather(*(ask(holder) for holder in holders.values()))
        total = summed(answer for answer in answers if answer is not None)
        add_cached(total, self._cached)
        kept = [one for one in total.model_stats if allowed(one.name)]
        return kserve.ModelStatisticsResponse(model_stats=kept)

    async def close(self) -> None:
        await asyncio.gather(*(channel.close() for _, channel in self._channels.values()), return_exceptions=True)
        self._channels.clear()

    def chosen(self, model: str, version: str) -> ModelVersion:
        """This version (empty: the newest that is ready), if a copy of it is ready. Raises ModelUnknown, ModelCold."""
        index = self._fleet.view.models.get(ModelName(model))
        readies = index.newest_ready if index is not None else {}
        newest = readies.get(self._fleet.home) or readies.get(ANY_REGION)
        if index is None or (version and not self._fleet.copies(model, version)):
            if self._fleet.placed(model, version):
                raise ModelCold(f"no copy of model {model!r} is ready yet", retry_after_s=1.0)
            raise unknown_model(model, version)
        if not self._fleet.ready(model, version):
            states = {copy.state.value for _, copy in self._fleet.copies(model, version)}
            raise ModelCold(f"no copy of model {model!r} is ready: {', '.join(sorted(states))}", retry_after_s=1.0)
        return ModelVersion(version) if version or newest is None else newest

    async def _once(self, what: str, model: str, version: ModelVersion, ask: Callable[[Any], Awaitable[_Answer]]) -> _Answer:
        """The answer of any ready copy, remembered for its digest."""
        holders = self._fleet.ready(model, version)
        failure: PenstockError = ModelCold(f"no copy of model {model!r} is ready any more", retry_after_s=1.0)
        for worker, copy in holders:
            key = (what, copy.digest)
            if key in self._remembered:
                self._remembered.move_to_end(key)
                found: _Answer = self._remembered[key]
                return found
            try:
                answer = await _answer(ask(await self._stub(worker)))
            except PenstockError as error:
                if error.code not in (Code.UNAVAILABLE, Code.NOT_FOUND, Code.DEADLINE_EXCEEDED):
                    raise
                failure = error
                continue
            self._remember(copy, key, answer)
            return answer
        raise failure

    def _remember(self, copy: Copy, key: tuple[str, Digest], answer: Any) -> None:
        if copy.digest:
            self._remembered[key] = answer
            while len(self._remembered) > _REMEMBERED:
                self._remembered.popitem(last=False)

    async def _stub(self, worker: Worker) -> Any:
        workers = self._fleet.view.workers
        for worker_id, (address, channel) in list(self._channels.items()):
            known = workers.get(worker_id)
            if known is None or known.address != address:
                del self._channels[worker_id]
                await channel.close()
        if worker.worker_id not in self._channels:
            self._channels[worker.worker_id] = worker.address, self._open_channel(worker)
        return GRPCInferenceServiceStub(self._channels[worker.worker_id][1])


_LIMIT = {"timeout": ANSWER_TIMEOUT_S}


async def _answer(call: Awaitable[_Answer]) -> _Answer:
    try:
        return await call
    except grpc.aio.AioRpcError as failure:
        raise error_of(failure) from failure
