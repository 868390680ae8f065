"""A model's folder, as people write it: `model.toml` beside the files, read into a manifest.

Shared by those who publish a folder and those who serve one as it lies. What the file may say is `model_description.py`'s
question. Never signs, uploads or loads.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from penstock.registry.v1 import models_pb2

from runtime.model_description import ModelFolderRefused, describe

__all__ = [
    "DESCRIPTION",
    "ModelFile",
    "ModelFolder",
    "ModelFolderRefused",
    "complete_manifest",
    "hash_file",
    "read_model_folder",
]

DESCRIPTION = "model.toml"
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One file of a model: where it lies, and its path inside the folder with forward slashes."""

    file: Path
    path: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder as described. The manifest names no version and no files yet."""

    manifest: models_pb2.Manifest
    files: tuple[ModelFile, ...]

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


def read_model_folder(folder: Path) -> ModelFolder:
    """Read `model.toml` and list the files. Raises ModelFolderRefused with what was seen and what is expected."""
    description = folder / DESCRIPTION
    try:
        content = tomllib.loads(description.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelFolderRefused(f"{folder} holds no {DESCRIPTION}; a model folder needs one beside its files") from error
    except (OSError, ValueError, RecursionError) as error:  # tomllib has more than its own error for what nobody means
        raise ModelFolderRefused(f"{description} cannot be read: {error}") from error
    manifest = describe(str(description), content)
    files = tuple(_files(folder))
    if not files:
        raise ModelFolderRefused(f"{folder} holds no files beside {DESCRIPTION}")
    return ModelFolder(manifest, files)


def hash_file(file: Path, progress: Callable[[int], None] = lambda _: None) -> str:
    """sha256 in lower-case hex; `progress` is told of each block's bytes."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
            progress(len(block))
    return digest.hexdigest()


def complete_manifest(folder: ModelFolder, version: str, digests: Mapping[str, str]) -> models_pb2.Manifest:
    """The folder's manifest with its version and files; `digests` maps each path to its sha256."""
    manifest = models_pb2.Manifest()
    manifest.CopyFrom(folder.manifest)
    manifest.version = version
    for file in folder.files:
        manifest.files.add(path=file.path, sha256=digests[file.path], size_bytes=file.size_bytes)
    return manifest


def _files(folder: Path) -> Iterator[ModelFile]:
    for file in sorted(folder.rglob("*")):
        path = file.relative_to(folder)
        if file.is_file() and path.name != DESCRIPTION and not any(part.startswith(".") for part in path.parts):
            yield ModelFile(file, path.as_posix(), file.stat().st_size)
