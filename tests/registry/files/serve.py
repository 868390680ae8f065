"""A small registry process that has files and nothing else, for tests that kill one.

`--halt-at get|put|delete --halt-file F`: the store stands still at such calls while F exists, after it wrote `F.reached`.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from registry.access.door import NodeDoor
from registry.audit.trail import AuditTrail
from registry.files.composition import compose_files
from registry.files.data_keys import DataKeys
from registry.files.layout import PART_BYTES
from registry.files.local import LocalObjects
from registry.files.objects import Objects
from registry.files.stores import open_objects
from registry.files.types import FileLimits
from registry.schema import REGISTRY, tenants
from registry.seals import Seals, insert_sealed
from runtime.clock import SystemClock
from runtime.database import open_database
from runtime.identity import load_identity
from runtime.process import announce
from runtime.serving import Listen, ServerLimits, serving
from tests.registry.files.rig import NoRotation
from tests.registry.harness import MASTER_KEYS


class HaltingObjects(LocalObjects):
    def __init__(self, folder: Path, halt_at: str, halt_file: Path) -> None:
        super().__init__(folder)
        self._halt_at, self._halt_file = halt_at, halt_file

    async def get(self, key: str, start_byte: int, size_bytes: int) -> bytes:
        await self._halt("get")
        return await super().get(key, start_byte, size_bytes)

    async def put(self, key: str, data: bytes | bytearray) -> bool:
        await self._halt("put")
        return await super().put(key, data)

    async def delete(self, keys: Sequence[str]) -> None:
        await self._halt("delete")
        await super().delete(keys)

    async def _halt(self, at: str) -> None:
        while at == self._halt_at and self._halt_file.exists():
            self._halt_file.with_suffix(".reached").touch()
            await asyncio.sleep(0.01)


async def serve(arguments: argparse.Namespace) -> None:
    limits = replace(
        FileLimits(part_bytes=arguments.part_bytes, verifying_s=arguments.verifying_s), grace_ms=arguments.grace_ms
    )
    async with open_objects(arguments.objects) as opened, open_database(arguments.database, REGISTRY) as database:
        objects: Objects = opened
        if arguments.halt_at:
            objects = HaltingObjects(Path(arguments.objects), arguments.halt_at, arguments.halt_file)
        seals, clock = Seals(MASTER_KEYS), SystemClock()
        async with database.writing() as connection:
            if not (await connection.execute(tenants.select())).first():
                await insert_sealed(connection, seals, tenants, {"tenant": "default", "created_at_ms": 1})
        files = compose_files(
            door=NodeDoor(),
            database=database,
            objects=objects,
            seals=seals,
            data_keys=DataKeys(MASTER_KEYS),
            trail=AuditTrail(database, seals, clock),
            rotation=NoRotation(),
            clock=clock,
            limits=limits,
        )
        listen = Listen("127.0.0.1", 0, load_identity(arguments.identity))
        server_limits = ServerLimits(message_bytes=16 * 1024 * 1024)
        async with serving([listen], [files.servicer.register], (), limits=server_limits) as running:
            announce(arguments.ready_file, port=running.ports[0])
            await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--database", "--objects"):
        parser.add_argument(name, required=True)
    for name in ("--identity", "--ready-file"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--part-bytes", type=int, default=PART_BYTES)
    parser.add_argument("--verifying-s", type=float, default=15.0)
    parser.add_argument("--grace-ms", type=int, default=86_400_000)
    parser.add_argument("--halt-at", default="")
    parser.add_argument("--halt-file", type=Path)
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
