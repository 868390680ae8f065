"""Composes a worker. Lifetimes nest, and leaving them is the order of ending: out of the fleet, a moment for gateways to hear
of it, the calls in flight, the ports, the loads, the models."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial

import structlog

from runtime.clock import SystemClock
from runtime.config import read_settings
from runtime.identity import load_identity
from runtime.ids import WorkerId
from runtime.own_region import located
from runtime.process import announce, run_service, started
from runtime.renewal import renewing
from runtime.telemetry import configure_logging, configure_tracing
from worker.config import WorkerSettings
from worker.copies import open_model
from worker.execute.execution import Execution
from worker.execute.hold_service import HoldService
from worker.front import opened_front, opened_metrics, quota_of
from worker.inference import TableInference
from worker.life.lifecycle import Holdings
from worker.membership import membership_of
from worker.presence_codec import copy_messages
from worker.remote.upstream_keys import UpstreamAccess
from worker.runner.code_trust import CodeSigners
from worker.standalone import check_alone, opened_repository, opened_table


async def serve(settings: WorkerSettings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set. Raises a PenstockError where it cannot start; etcd and registry may come later."""
    configure_logging("worker", level=settings.log_level)
    interceptors = configure_tracing("worker", settings.otlp_endpoint)
    check_alone(settings)
    settings = settings if settings.standalone else located(settings, SystemClock())
    identity = load_identity(settings.identity_dir) if settings.identity_dir else None
    worker_id, holdings = WorkerId(identity.node_id if identity else "standalone"), Holdings()
    open_copy = partial(
        open_model,
        upstreams=UpstreamAccess(settings.upstream_keys, settings.upstream_hosts),
        code=CodeSigners(settings.code_signers, settings.allow_unsigned_code),
    )
    async with AsyncExitStack() as stack:
        table = await stack.enter_async_context(opened_table())
        membership = membership_of(settings, identity, table, holdings, open_copy)
        following = await stack.enter_async_context(membership.following_orders()) if membership else None
        repository = await stack.enter_async_context(opened_repository(settings, table, holdings, open_copy, stop))
        inference = TableInference(table, quota=quota_of(settings))
        execution = Execution(
            inference,
            worker_id,
            stop,
            copies=lambda: copy_messages(holdings, draining=execution.draining),
            models=following.models if following else None,
            holds=HoldService(inference, table),
            changed=holdings.tell,
        )
        revocations = membership.board.revocations if membership else None
        front = opened_front(settings, identity, table, inference, execution, interceptors, repository, revocations)
        ports = await stack.enter_async_context(front)
        if membership and following and identity:
            await stack.enter_async_context(renewing(identity, settings.registry_address))
            await stack.enter_async_context(membership.present(following, ports, lambda: execution.draining))
        metrics_port = opened_metrics(settings, table, inference)
        bound = {"port": ports.inner, "kserve_port": ports.kserve, "sealed_port": ports.sealed, "metrics_port": metrics_port}
        structlog.get_logger("penstock.worker").info("serving", worker_id=worker_id, **bound)
        announce(settings.ready_file, **bound)
        await stop.wait()


def run(settings: WorkerSettings) -> int:
    """Serve until a signal; the exit status."""
    return run_service(partial(serve, settings))


def main(argv: Sequence[str] | None = None) -> int:
    return started(lambda: run(read_settings(WorkerSettings, argv)))


if __name__ == "__main__":
    sys.exit(main())
