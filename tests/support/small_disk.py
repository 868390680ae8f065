"""A disk that is full, read-only or large again on a test's word: a tmpfs, where this machine lets us mount one."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

MIB = 1 << 20


class SmallDisk:
    """Mounted at a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def resize(self, size_bytes: int) -> None:
        """Everything on it stays."""
        _run("mount", "-o", f"remount,rw,size={size_bytes}", str(self.folder))

    def close_for_writing(self) -> None:
        _run("mount", "-o", "remount,ro", str(self.folder))

    def open_for_writing(self) -> None:
        _run("mount", "-o", "remount,rw", str(self.folder))

    @contextmanager
    def full(self) -> Iterator[None]:
        """Not a byte more fits, until this is left."""
        ballast = self.folder / "ballast"
        with ballast.open("wb", buffering=0) as file:
            for size_bytes in (MIB, 4096, 1):
                try:
                    while True:
                        file.write(bytes(size_bytes))
                except OSError:
                    continue
        try:
            yield
        finally:
            ballast.unlink()


@contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[SmallDisk]:
    """Skips where nothing may be mounted."""
    folder.mkdir(parents=True)
    try:
        _run("mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder))
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a small disk needs the right to mount a tmpfs")
    try:
        yield SmallDisk(folder)
    finally:
        _run("umount", "--lazy", str(folder))


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, timeout=10)
