"""Files that loads brought, in folders of their own for as long as a model is served from them.

Owns a temporary folder and how much may lie in it. Blocking; call it in a thread.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from pathlib import Path

from runtime.load_overrides import LoadOverride, OverrideTooLarge, write_files

DEFAULT_MAX_BYTES = 2 * 1024**3


class Uploads:
    """Used by any thread. The folder is made when it is first needed."""

    def __init__(self, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._home: Path | None = None
        self._sizes: dict[Path, int] = {}
        self._guard = threading.Lock()
        self._made = 0

    @property
    def folders(self) -> tuple[Path, ...]:
        """Those that are kept."""
        return tuple(self._sizes)

    @property
    def size_bytes(self) -> int:
        return sum(self._sizes.values())

    def keep(self, override: LoadOverride) -> Path:
        """Its files in a new folder, as `write_files` lays them out. Raises OverrideTooLarge, OSError."""
        folder = self._reserved(override.size_bytes)
        try:
            write_files(override, folder)
        except BaseException:
            self.remove(folder)
            raise
        return folder

    def remove(self, folder: Path) -> None:
        """A folder that nobody serves from any more."""
        shutil.rmtree(folder, ignore_errors=True)
        with self._guard:
            self._sizes.pop(folder, None)

    def remove_all(self) -> None:
        with self._guard:
            home, self._home = self._home, None
            self._sizes.clear()
        if home is not None:
            shutil.rmtree(home, ignore_errors=True)

    def _reserved(self, size_bytes: int) -> Path:
        with self._guard:
            if (taken := self.size_bytes) + size_bytes > self._max_bytes:
                raise OverrideTooLarge(
                    f"files of {size_bytes} bytes do not fit beside {taken} bytes that other loads brought; {self._max_bytes}"
                    " may be here at once: unload a model that was loaded with files"
                )
            if self._home is None:
                self._home = Path(tempfile.mkdtemp(prefix="penstock-uploads-"))
            self._made += 1
            folder = self._home / str(self._made)
            folder.mkdir()
            self._sizes[folder] = size_bytes
            return folder
