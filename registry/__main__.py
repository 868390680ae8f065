"""Composes the registry: database, objects, etcd, services. Lifetimes nest; leaving them is the order of shutting down."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from functools import partial

import structlog

from registry.accounts.bootstrap import bootstrap
from registry.config import RegistrySettings
from registry.files.allocator import few_arenas
from registry.files.stores import open_objects
from registry.ground import ground_of, own_address, public_listen
from registry.schema import REGISTRY
from registry.services import SERVICES, Registry
from runtime.config import read_settings
from runtime.database import open_database
from runtime.etcd import EtcdStore
from runtime.etcd_members import EtcdSettings
from runtime.identity import load_identity
from runtime.process import announce, run_service, started
from runtime.renewal import renewing
from runtime.serving import Listen, ServerLimits, serving
from runtime.telemetry import configure_logging, configure_tracing, start_metrics_endpoint

MESSAGE_BYTES = 16 * 1024 * 1024
"""What a server of these services takes in one message: room for any chunk that makes sense."""

NODES_RPCS, STRANGERS_RPCS = 4096, 512
"""Calls open at once."""


async def serve(settings: RegistrySettings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set. Raises a PenstockError where it cannot start; etcd may come later."""
    configure_logging("registry", level=settings.log_level)
    interceptors = configure_tracing("registry", settings.otlp_endpoint)
    identity = load_identity(settings.identity_dir)
    nodes = [Listen(settings.host, settings.port, identity)]
    public = [] if settings.public_port is None else [public_listen(settings, identity)]
    async with (
        open_database(settings.database, REGISTRY) as database,
        open_objects(settings.objects) as objects,
        EtcdStore(EtcdSettings.at(settings.etcd_endpoints)) as store,
    ):
        registry = Registry(await ground_of(settings, database, objects, store, identity))
        await bootstrap(registry.first_accounts, settings.bootstrap_key_file)

        server_on = partial(
            serving,
            registers=registry.registers,
            services=SERVICES,
            interceptors=interceptors,
            drain_grace_s=settings.drain_grace_s,
            revocations=registry.revocations,
        )
        for_nodes = server_on(nodes, limits=ServerLimits(message_bytes=MESSAGE_BYTES, concurrent_rpcs=NODES_RPCS))
        for_strangers = server_on(public, limits=ServerLimits(message_bytes=MESSAGE_BYTES, concurrent_rpcs=STRANGERS_RPCS))
        # Servers of their own: what strangers begin and leave standing takes nothing from nodes.
        async with registry.running(), for_nodes as inner, for_strangers as outer:
            port, public_port = inner.ports[0], next(iter(outer.ports), None)
            metrics = None if settings.metrics_port is None else start_metrics_endpoint(settings.host, settings.metrics_port)
            log = structlog.get_logger("penstock.registry")
            log.info("serving", port=port, public_port=public_port, metrics_port=metrics)
            async with renewing(identity, own_address(settings, port)):
                announce(settings.ready_file, port=port, public_port=public_port, metrics_port=metrics)
                await stop.wait()


def run(settings: RegistrySettings) -> int:
    """Serve until a signal; the exit status."""
    return run_service(partial(serve, settings))


def main(argv: Sequence[str] | None = None) -> int:
    few_arenas()
    return started(lambda: run(read_settings(RegistrySettings, argv)))


if __name__ == "__main__":
    sys.exit(main())
