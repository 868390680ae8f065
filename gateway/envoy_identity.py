"""Keeps Envoy's certificate of this mesh valid, where its folder is on this machine: Envoy asks nobody for a new one.

Envoy watches the file (`gateway.xds.bootstrap`) and uses a new certificate without a restart. Never decides who may have one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from gateway.config import GatewaySettings
from runtime.errors import FailedPrecondition
from runtime.identity import NodeIdentity, Role, load_identity
from runtime.renewal import renewing

_log = structlog.get_logger("penstock.envoy")


@asynccontextmanager
async def envoy_renewed(settings: GatewaySettings) -> AsyncIterator[None]:
    """While the context lasts. Where Envoy runs elsewhere, somebody there has to, with `penstock join`."""
    folder = settings.envoy_identity_dir
    identity = None if folder is None else await asyncio.to_thread(_found, folder)
    if identity is None:
        yield
        return
    async with renewing(identity, settings.registry_address):
        yield


def _found(folder: Path) -> NodeIdentity | None:
    try:
        identity = load_identity(folder)
    except FailedPrecondition as error:
        _log.info("envoy_not_renewed_here", why=error.message)
        return None
    return identity if identity.role is Role.ENVOY else None
