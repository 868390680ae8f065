"""Composes the registry: database, files, services. Lifetimes nest; leaving them is the order of shutting down."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from contextlib import closing
from functools import partial

import structlog

from registry.bootstrap import bootstrap
from registry.changes import KeyChanges
from registry.config import RegistrySettings
from registry.database import Database, open_database
from registry.local_objects import LocalObjects
from registry.servicer import MESSAGE_BYTES, SERVICES
from registry.services import account_service, model_service
from registry.sql_accounts import SqlAccountStore
from registry.sql_models import SqlModelStore
from registry.transfers import TransferLimits
from runtime.clock import SystemClock
from runtime.config import read_settings
from runtime.identity import load_identity
from runtime.manifests import read_trusted_signers
from runtime.process import announce, run_service, started
from runtime.serving import Listen, Register, ServerLimits, serving
from runtime.telemetry import configure_logging, configure_tracing, start_metrics_endpoint


async def serve(settings: RegistrySettings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set. Raises a PenstockError where it cannot start."""
    configure_logging("registry", level=settings.log_level)
    interceptors = configure_tracing("registry", settings.otlp_endpoint)
    listen = Listen(settings.host, settings.port, load_identity(settings.identity_dir))
    changes = KeyChanges(max_watches=settings.max_key_watches, backlog=settings.key_watch_backlog)
    limits, grace_s = ServerLimits(message_bytes=MESSAGE_BYTES), settings.drain_grace_s
    async with open_database(settings.database) as database:
        registers = await _registers(settings, database, changes)
        server = serving([listen], registers, SERVICES, interceptors=interceptors, limits=limits, drain_grace_s=grace_s)
        async with server as running:
            with closing(changes):
                metrics = (
                    None if settings.metrics_port is None else start_metrics_endpoint(settings.host, settings.metrics_port)
                )
                structlog.get_logger("penstock.registry").info("serving", port=running.ports[0], metrics_port=metrics)
                announce(settings.ready_file, port=running.ports[0], metrics_port=metrics)
                await stop.wait()


async def _registers(settings: RegistrySettings, database: Database, changes: KeyChanges) -> list[Register]:
    clock, accounts, objects = SystemClock(), SqlAccountStore(database), LocalObjects(settings.objects_dir)
    trusted = partial(read_trusted_signers, settings.trusted_signers)
    trusted()  # a file that cannot be read is told of now, not at the first publish; it is read anew at each
    await objects.drop_stale(settings.partial_lifetime_s)
    await bootstrap(accounts, settings.bootstrap_key_file, clock)
    limits = TransferLimits(settings.max_file_bytes, settings.max_uploads, settings.upload_silence_s)
    models = model_service(SqlModelStore(database), objects, limits, trusted, clock)
    return [models, account_service(accounts, changes, clock)]


def run(settings: RegistrySettings) -> int:
    """Serve until a signal; the exit status."""
    return run_service(partial(serve, settings))


def main(argv: Sequence[str] | None = None) -> int:
    return started(lambda: run(read_settings(RegistrySettings, argv)))


if __name__ == "__main__":
    sys.exit(main())
