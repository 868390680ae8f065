"""A model's folder, as people write it: `model.toml` beside the files, read into a manifest.

A codec shared by those who publish a folder and those who serve one as it lies. Decides what the file may say; never signs,
uploads or loads.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.registry.v1 import models_pb2

from runtime.errors import Code, PenstockError

DESCRIPTION = "model.toml"
TASKS = ("tensor", "chat", "completion", "embedding")
DATATYPES = (
    *("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"),
    *("FP16", "FP32", "FP64", "BF16", "BYTES"),
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_BLOCK_BYTES = 1 << 20
_TABLES = ("batching", "inputs", "outputs", "parameters")
_FIELDS = {"name", "engine", "task", "description", "licence", "max_batch_size", "tier", "decoupled", *_TABLES}


class ModelFolderRefused(PenstockError, code=Code.INVALID_ARGUMENT, reason="MODEL_FOLDER_REFUSED"):
    """The folder does not describe a model."""


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
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ModelFolderRefused(f"{description} cannot be read: {error}") from error
    manifest = _Reader(description, content).manifest()
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


class _Reader:
    """Reads one description, naming the field at fault."""

    def __init__(self, source: Path, content: Mapping[str, Any]) -> None:
        self._source, self._content = source, content

    def manifest(self) -> models_pb2.Manifest:
        if unknown := sorted(set(self._content) - _FIELDS):
            raise self._refused(f"{unknown[0]!r} is not a field; the fields are: {', '.join(sorted(_FIELDS))}")
        name = self._text(self._content, "name")
        if not _NAME.fullmatch(name):
            raise self._refused(f"name {name!r} may hold letters, digits, '.', '_' and '-', and starts with a letter or digit")
        task = self._text(self._content, "task", "tensor")
        if task not in TASKS:
            raise self._refused(f"task is {task!r}; it can be: {', '.join(TASKS)}")
        return models_pb2.Manifest(
            model=name,
            engine=self._text(self._content, "engine"),
            task=task,
            description=self._text(self._content, "description", ""),
            licence=self._text(self._content, "licence", ""),
            tier=self._text(self._content, "tier", ""),
            max_batch_size=self._number(self._content, "max_batch_size", 0),
            decoupled=self._content.get("decoupled", False) is True,
            batching=self._batching(),
            inputs=[self._tensor("inputs", entry) for entry in self._list("inputs")],
            outputs=[self._tensor("outputs", entry) for entry in self._list("outputs")],
            parameters={key: str(value) for key, value in self._table("parameters").items()},
        )

    def _batching(self) -> models_pb2.Batching:
        batching = self._table("batching")
        return models_pb2.Batching(
            max_queue_delay_us=self._number(batching, "max_queue_delay_us", 0),
            preferred_batch_sizes=[int(size) for size in batching.get("preferred_batch_sizes", [])],
            max_queue_size=self._number(batching, "max_queue_size", 0),
        )

    def _tensor(self, what: str, entry: Any) -> models_pb2.TensorSpec:
        if not isinstance(entry, dict):
            raise self._refused(f"{what} is a list of tables; write [[{what}]]")
        datatype, shape = self._text(entry, "datatype"), entry.get("shape")
        if datatype not in DATATYPES:
            raise self._refused(f"{what}: datatype is {datatype!r}; it can be: {', '.join(DATATYPES)}")
        if not isinstance(shape, list) or not all(isinstance(size, int) and size >= -1 for size in shape):
            raise self._refused(f"{what}: shape is {shape!r}; it is a list of sizes, -1 for one that varies")
        labels = [str(label) for label in entry.get("labels", [])]
        optional = entry.get("optional", False) is True
        return models_pb2.TensorSpec(
            name=self._text(entry, "name"), datatype=datatype, shape=shape, labels=labels, optional=optional
        )

    def _text(self, table: Mapping[str, Any], field: str, default: str | None = None) -> str:
        value = table.get(field, default)
        if not isinstance(value, str) or (default is None and not value):
            raise self._refused(f"{field} is {value!r}; a string is needed")
        return value

    def _number(self, table: Mapping[str, Any], field: str, default: int) -> int:
        value = table.get(field, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self._refused(f"{field} is {value!r}; a whole number from 0 is needed")
        return value

    def _table(self, field: str) -> Mapping[str, Any]:
        value = self._content.get(field, {})
        if not isinstance(value, dict):
            raise self._refused(f"{field} is a table; write [{field}]")
        return value

    def _list(self, field: str) -> list[Any]:
        value = self._content.get(field, [])
        if not isinstance(value, list):
            raise self._refused(f"{field} is a list of tables; write [[{field}]]")
        return value

    def _refused(self, sentence: str) -> ModelFolderRefused:
        return ModelFolderRefused(f"{self._source}: {sentence}")
