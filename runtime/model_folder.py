"""A model's folder, as people write it, read into manifests: `model.toml` beside the files, or a Triton repository's folder.

Shared by those who publish a folder and those who serve one as it lies. What the files may say is `model_description.py`'s
question, and `triton_folder.py`'s. Never signs, uploads or loads. Blocking; call it in a thread.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from penstock.registry.v1 import models_pb2

from runtime.description_table import ModelFolderRefused
from runtime.model_description import describe
from runtime.model_files import ModelFile, ModelFolder

__all__ = [
    "DESCRIPTION",
    "ModelFile",
    "ModelFolder",
    "ModelFolderRefused",
    "complete_manifest",
    "describes_model",
    "hash_file",
    "model_name",
    "read_model_folder",
    "read_versions",
]

DESCRIPTION = "model.toml"
_BLOCK_BYTES = 1 << 20


def describes_model(folder: Path) -> bool:
    """Whether there is something here to read. Never raises for what is in it."""
    from runtime.triton_folder import is_triton_folder

    try:
        return (folder / DESCRIPTION).is_file() or is_triton_folder(folder)
    except (OSError, ModelFolderRefused):
        return False


def model_name(folder: Path) -> str:
    """The model's name, without reading any of its files. Raises ModelFolderRefused, TritonConfigRefused."""
    from runtime.triton_folder import triton_name

    return _described(folder).model if (folder / DESCRIPTION).is_file() else triton_name(folder)


def read_model_folder(folder: Path) -> ModelFolder:
    """Read the description and list the files; of a Triton folder the newest version that it serves.

    Raises ModelFolderRefused with what was seen and what is expected; TritonConfigRefused, OnnxUnreadable of a Triton folder.
    """
    return read_versions(folder)[-1]


def read_versions(folder: Path, check_wanted: Callable[[], None] = lambda: None) -> tuple[ModelFolder, ...]:
    """As `read_model_folder`, each version that Triton would serve, ascending; one where `model.toml` describes it.

    `check_wanted` raises to have the reading of a model's file given up.
    """
    from runtime.onnx_io import read_onnx
    from runtime.triton_folder import ReadRules, is_triton_folder, read_triton_folder

    if not (folder / DESCRIPTION).is_file() and folder.is_dir() and is_triton_folder(folder):
        return read_triton_folder(folder, ReadRules(latest_only=True, read_onnx=partial(read_onnx, check_wanted=check_wanted)))
    manifest, files = _described(folder), tuple(_files(folder))
    if not files:
        raise ModelFolderRefused(f"{folder} holds no files beside {DESCRIPTION}")
    return (ModelFolder(manifest, files, folder),)


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


def _described(folder: Path) -> models_pb2.Manifest:
    description = folder / DESCRIPTION
    try:
        content = tomllib.loads(description.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelFolderRefused(f"{folder} holds no {DESCRIPTION}; a model folder needs one beside its files") from error
    except (OSError, ValueError, RecursionError) as error:  # tomllib has more than its own error for what nobody means
        raise ModelFolderRefused(f"{description} cannot be read: {error}") from error
    return describe(str(description), content)


def _files(folder: Path) -> Iterator[ModelFile]:
    for file in sorted(folder.rglob("*")):
        path = file.relative_to(folder)
        if file.is_file() and path.name != DESCRIPTION and not any(part.startswith(".") for part in path.parts):
            yield ModelFile(file, path.as_posix(), file.stat().st_size)
