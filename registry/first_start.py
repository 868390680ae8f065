"""Whether this registry may use these master keys with this database.

Decides it before anything is served: keys are made for an empty database alone, and a file that lacks a key under which rows of
the database are sealed is not begun with. Never makes keys for rows that others sealed.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import LargeBinary, func, select

from registry.master_keys import (
    ID_BYTES,
    MasterKeyFile,
    locked,
    new_master_keys,
    write_master_keys,
)
from registry.schema import tenants
from registry.threads import in_thread
from runtime.database import Database
from runtime.errors import FailedPrecondition


async def open_master_keys(file: Path, database: Database) -> MasterKeyFile:
    """The keys in the file, which is made on the first start. Raises FailedPrecondition."""
    used = await _used_key_ids(database)
    keys = await in_thread(_opened, file, bool(used))
    if missing := sorted(used - keys.latest().keys.keys()):
        raise FailedPrecondition(
            f"rows of the database are sealed under the master key {missing[0]!r}, which is not in {file};"
            " give this registry the file that the others use, or restore it from its backup"
        )
    return keys


def _opened(file: Path, in_use: bool) -> MasterKeyFile:
    with locked(file):
        if not file.exists():
            if in_use:
                raise FailedPrecondition(
                    f"the database is in use, and its master keys are not in {file}; restore it, or name the one there is"
                )
            write_master_keys(file, new_master_keys())
        return MasterKeyFile(file)


async def _used_key_ids(database: Database) -> set[str]:
    """Of the keys that tenants are sealed under: everything else of the registry's belongs to one."""
    prefix = func.substr(tenants.c.seal, 1, ID_BYTES, type_=LargeBinary)
    async with database.reading() as connection:
        found = await connection.execute(select(prefix).distinct().limit(100))
        return {bytes(key_id).rstrip(b"\0").decode(errors="replace") for (key_id,) in found}
