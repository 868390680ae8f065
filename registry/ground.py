"""What a registry stands on: what was opened for it, and what its settings say. Decides nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from registry.config import RegistrySettings
from registry.files.objects import Objects
from registry.files.types import FileLimits
from registry.first_start import open_master_keys
from registry.master_keys import KeySource
from registry.nodes.types import EnrolmentRules
from runtime.clock import Clock, SystemClock
from runtime.database import Database
from runtime.errors import FailedPrecondition
from runtime.identity import Authority, NodeIdentity
from runtime.keyvalue import KeyValueStore
from runtime.manifests import read_trusted_signers
from runtime.serving import Listen

_WILDCARDS = ("", "0.0.0.0", "::")


@dataclass(frozen=True, slots=True)
class Ground:
    """What a registry stands on."""

    database: Database
    objects: Objects
    master_keys: KeySource
    store: KeyValueStore
    identity: NodeIdentity
    roots: Callable[[], frozenset[bytes]]
    """Public keys that are believed, read anew at each use."""
    authority: Authority | None
    clock: Clock
    limits: FileLimits = field(default_factory=FileLimits)
    rules: EnrolmentRules = field(default_factory=EnrolmentRules)
    collect_every_s: float = 3_600.0


async def ground_of(
    settings: RegistrySettings, database: Database, objects: Objects, store: KeyValueStore, identity: NodeIdentity
) -> Ground:
    """What the settings say, on what was opened for them. Raises FailedPrecondition on files that cannot be used."""
    roots = partial(read_trusted_signers, settings.trusted_signers)
    roots()  # a file that cannot be read is told of now, not at the first publish; it is read anew at each
    return Ground(
        database=database,
        objects=objects,
        master_keys=await open_master_keys(settings.master_keys, database),
        store=store,
        identity=identity,
        roots=roots,
        authority=None if settings.authority_dir is None else Authority.load(settings.authority_dir),
        clock=SystemClock(),
        limits=FileLimits(
            file_bytes=settings.max_file_bytes,
            uploads=settings.max_uploads,
            uploads_per_tenant=settings.max_uploads_per_tenant,
            parts_at_once=settings.parts_at_once,
            silence_s=settings.upload_silence_s,
            grace_ms=int(settings.garbage_grace_s * 1000),
            upload_lifetime_ms=int(settings.upload_lifetime_s * 1000),
        ),
        rules=EnrolmentRules(_join_addresses(settings), settings.certificate_days * 86_400.0),
        collect_every_s=settings.collect_every_s,
    )


def own_address(settings: RegistrySettings, port: int) -> str:
    """Where a registry with an authority answers: this process, unless another was named."""
    if settings.registry_address:
        return settings.registry_address
    host = "127.0.0.1" if settings.host in _WILDCARDS else settings.host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def public_listen(settings: RegistrySettings, identity: NodeIdentity) -> Listen:
    """For nodes that have no certificate yet, and people."""
    return Listen(settings.public_host, settings.public_port or 0, identity, asks_certificate=False)


def _join_addresses(settings: RegistrySettings) -> tuple[str, ...]:
    if settings.join_addresses:
        return tuple(address.strip() for address in settings.join_addresses.split(",") if address.strip())
    if not settings.public_port:
        return ()
    if settings.public_host in _WILDCARDS:
        raise FailedPrecondition(
            f"nodes cannot join at {settings.public_host or 'an empty host'}; pass --join-addresses HOST:PORT,…"
        )
    return (f"{settings.public_host}:{settings.public_port}",)
