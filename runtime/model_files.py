"""A version of a model as somebody's folder describes it: what it is, and where its files lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from penstock.registry.v1 import models_pb2


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One file of a model: where it lies, and its path inside the folder with forward slashes."""

    file: Path
    path: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A version as described. The manifest names no files yet, and a version only where the folder's name tells it."""

    manifest: models_pb2.Manifest
    files: tuple[ModelFile, ...]
    root: Path | None = None
    """Where the paths of most files begin."""
    warnings: tuple[str, ...] = ()
    """What the description asks for that is left out, for a person."""

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)
