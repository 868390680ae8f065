"""The registry's master keys: what wraps data keys and seals rows. They lie in a file that is in no database and no bucket.

One key a line, `id:hex`, the newest last; older ones stay until `RotateMasterKey` has gone over everything. Owns that file: a
registry that runs reads it anew when it was changed. With a file that is lost everything is lost that lies under its keys: so
it is made for an empty database alone (`first_start.py`), and is on the disk before anything is put under a key of it.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import structlog

from runtime.errors import FailedPrecondition

KEY_BYTES = 32
ID_BYTES = 16
"""What an id has at most."""

_LOOK_EVERY_S = 1.0
_log = structlog.get_logger("penstock.master_keys")


class KeySource(Protocol):
    """Where seals and data keys get the master keys from, each time they need one."""

    def latest(self) -> MasterKeys: ...

    def knowing(self, key_id: str) -> MasterKeys:
        """Those with this key, if it is to be had at all."""
        ...


@dataclass(frozen=True, slots=True)
class MasterKeys:
    """Keys by id; `newest` is the one that new things are put under. A `KeySource` that never changes."""

    newest: str
    keys: Mapping[str, bytes] = field(repr=False)

    @property
    def current(self) -> bytes:
        return self.keys[self.newest]

    def latest(self) -> MasterKeys:
        return self

    def knowing(self, key_id: str) -> MasterKeys:
        return self

    def with_new(self) -> MasterKeys:
        """These and one more, which is the newest then."""
        key_id = secrets.token_hex(4)
        return MasterKeys(key_id, {**self.keys, key_id: secrets.token_bytes(KEY_BYTES)})


class MasterKeyFile:
    """A `KeySource`: the keys of a file, read anew when it was changed. One that cannot be read any more changes nothing.

    Looks are a `stat` of a small local file, at most one a second, and one more for a key that is not known: another registry
    may have begun to use it a moment ago.
    """

    def __init__(self, file: Path, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self._file, self._now_s = file, now_s
        self._seen = _seen(file)
        self._keys = read_master_keys(file)
        self._looked_s = now_s()

    def latest(self) -> MasterKeys:
        if self._now_s() - self._looked_s >= _LOOK_EVERY_S:
            self._look()
        return self._keys

    def knowing(self, key_id: str) -> MasterKeys:
        if key_id not in self._keys.keys:
            self._look()
        return self._keys

    def _look(self) -> None:
        self._looked_s = self._now_s()
        seen = _seen(self._file)
        if seen == self._seen:
            return
        try:
            keys = read_master_keys(self._file)
        except FailedPrecondition as error:
            _log.warning("master_keys_unreadable", file=str(self._file), error=error.message)
        else:
            self._keys = keys
            _log.info("master_keys_read", file=str(self._file), newest=keys.newest, count=len(keys.keys))
        self._seen = seen


def new_master_keys() -> MasterKeys:
    return MasterKeys("", {}).with_new()


def read_master_keys(file: Path) -> MasterKeys:
    """Raises FailedPrecondition on a file that is missing or cannot be read so."""
    try:
        lines = [line.strip() for line in file.read_text().splitlines()]
        pairs = [line.split(":", 1) for line in lines if line and not line.startswith("#")]
        keys = {key_id: bytes.fromhex(text) for key_id, text in pairs}
    except (OSError, ValueError) as error:
        raise FailedPrecondition(f"cannot read the master keys in {file}: lines of id:hex are expected") from error
    if not keys or any(len(key) != KEY_BYTES or not 0 < len(key_id.encode()) <= ID_BYTES for key_id, key in keys.items()):
        raise FailedPrecondition(f"{file} holds no master keys of {KEY_BYTES} bytes with ids of up to {ID_BYTES} characters")
    return MasterKeys(pairs[-1][0], keys)


def write_master_keys(file: Path, keys: MasterKeys) -> None:
    """Whole or not at all, for its owner alone, and on the disk when this returns."""
    ordered = [key_id for key_id in keys.keys if key_id != keys.newest] + [keys.newest]
    _write_durably(file, "".join(f"{key_id}:{keys.keys[key_id].hex()}\n" for key_id in ordered).encode())


def add_master_key(file: Path) -> str:
    """Put a new key behind those in the file; its id. Registries that run with the file use it within seconds.

    For registries with a file each: put the new line above the last one of every file first, and below it when all have it.
    """
    with locked(file):
        keys = read_master_keys(file).with_new()
        write_master_keys(file, keys)
    return keys.newest


def remove_master_keys(file: Path) -> int:
    """Leave only the newest key, once a rotation went over everything; how many went."""
    with locked(file):
        keys = read_master_keys(file)
        write_master_keys(file, MasterKeys(keys.newest, {keys.newest: keys.current}))
    return len(keys.keys) - 1


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """One writer at a time: of two that add a key at once, neither's is lost."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with file.with_name(f".{file.name}.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write_durably(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    draft.replace(file)
    folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _seen(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
