"""penstock.scheduler.v1.BatchService on the wire. Driving a batch is `driver.py`'s."""

from __future__ import annotations

from typing import Any

import grpc.aio
from penstock.scheduler.v1 import jobs_pb2, jobs_pb2_grpc

from runtime.clock import Clock
from scheduler.jobs.batches import codec
from scheduler.jobs.batches.sql import BatchStore
from scheduler.jobs.bell import Bell
from scheduler.jobs.callers import caller, plain, tenant_asked
from scheduler.jobs.types import BatchId

SERVICE = "penstock.scheduler.v1.BatchService"

Context = grpc.aio.ServicerContext[Any, Any]


class BatchServicer(jobs_pb2_grpc.BatchServiceServicer):
    def __init__(self, store: BatchStore, news: Bell, clock: Clock) -> None:
        self._store, self._news, self._clock = store, news, clock

    async def CreateBatch(self, request: jobs_pb2.CreateBatchRequest, context: Context) -> jobs_pb2.CreateBatchResponse:
        caller(context)
        batch = await self._store.create(codec.new_batch_of(request), self._now_ms())
        self._news.ring()
        return jobs_pb2.CreateBatchResponse(batch=codec.batch_message(batch))

    async def GetBatch(self, request: jobs_pb2.GetBatchRequest, context: Context) -> jobs_pb2.GetBatchResponse:
        tenant = tenant_asked(context, request.tenant)
        return jobs_pb2.GetBatchResponse(
            batch=codec.batch_message(await self._store.batch(BatchId(plain(request.batch_id)), tenant))
        )

    async def ListBatches(self, request: jobs_pb2.ListBatchesRequest, context: Context) -> jobs_pb2.ListBatchesResponse:
        tenant = tenant_asked(context, request.tenant)
        batches, has_more = await self._store.page(codec.question_of(tenant, request))
        return jobs_pb2.ListBatchesResponse(batches=[codec.batch_message(batch) for batch in batches], has_more=has_more)

    async def CancelBatch(self, request: jobs_pb2.CancelBatchRequest, context: Context) -> jobs_pb2.CancelBatchResponse:
        tenant = tenant_asked(context, request.tenant)
        batch = await self._store.cancel(BatchId(plain(request.batch_id)), tenant, self._now_ms())
        self._news.ring()
        return jobs_pb2.CancelBatchResponse(batch=codec.batch_message(batch))

    def _now_ms(self) -> int:
        return int(self._clock.wall_s() * 1_000)
