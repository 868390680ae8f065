"""What there is to import at a path: a Triton model repository, one model's folder of it, or a plain .onnx file.

Decides which models are meant, and whether each could be loaded: what its file says is compared with its configuration, so that
what no worker would load is not published. A model that is refused does not hold up the others. What a configuration means is
`runtime.triton_config`'s question. Never publishes. Blocking; call it in a thread.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from penstock.registry.v1 import models_pb2

from cli.publish import check_version
from runtime.errors import Code, InvalidArgument, PenstockError
from runtime.ids import Digest
from runtime.model_folder import DESCRIPTION, ModelFolder, describes_model
from runtime.onnx_io import OnnxTensor, OnnxTensors, read_onnx
from runtime.triton_engines import MAIN_FILES, listed
from runtime.triton_folder import ReadOnnx, ReadRules, read_onnx_file, read_triton_folder, triton_name
from worker.engines.described import Found, check_tensors, engine_inputs, engine_outputs
from worker.spec import spec_of
from worker.types import ModelSpec

MAX_MODELS = 10_000
_READ_AT_ONCE = min(4, os.cpu_count() or 1)
"""A process for each, as large as its model."""


class NothingToImport(PenstockError, code=Code.NOT_FOUND, reason="NOTHING_TO_IMPORT"):
    """There is no model at this path."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What of a path is imported, and as what. Empty: all, as it is called there."""

    model: str = ""
    version: str = ""
    tenant: str = ""
    max_batch_size: int = 0
    """Of models that take batches and have no configuration."""


@dataclass(frozen=True, slots=True)
class ReadModel:
    """A model that was found: its versions ascending, or why it is refused."""

    name: str
    source: Path
    versions: tuple[ModelFolder, ...] = ()
    refused: str = ""

    @property
    def warnings(self) -> list[str]:
        return list(dict.fromkeys(warning for version in self.versions for warning in version.warnings))


def read_models(path: Path, wanted: Wanted) -> list[ReadModel]:
    """Every model at the path, by name. Blocking; call it in a thread. Raises NothingToImport, InvalidArgument."""
    check_version(wanted.version)
    if path.is_file():
        if path.suffix != ".onnx":
            raise InvalidArgument(f"{path} is no .onnx file; import a file of ONNX, or a folder of Triton's layout")
        return [_read(wanted.model or path.stem, path, wanted)]
    if not path.is_dir():
        raise NothingToImport(f"there is nothing at {path}")
    if describes_model(path):
        return [_read(wanted.model or _named(path), path, wanted)]
    folders = [folder for folder in _models_in(path) if wanted.model in ("", _named(folder))]
    with ThreadPoolExecutor(_READ_AT_ONCE, thread_name_prefix="import") as readers:
        found = list(readers.map(lambda folder: _read(_named(folder), folder, wanted), folders))
    if not found:
        which = f"model {wanted.model!r}" if wanted.model else "models"
        raise NothingToImport(
            f"{path} holds no {which} in Triton's layout: <model>/config.pbtxt and <model>/1/<file>, or <model>/1/model.onnx"
        )
    return found


def _models_in(repository: Path) -> list[Path]:
    folders = sorted(entry for entry in repository.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if len(folders) > MAX_MODELS:
        raise InvalidArgument(f"{repository} has {len(folders)} folders; up to {MAX_MODELS} are read: import them in parts")
    return [folder for folder in folders if describes_model(folder)]


def _named(folder: Path) -> str:
    try:
        return triton_name(folder)
    except PenstockError:
        return folder.absolute().name  # why it cannot be read is told when it is read


def _read(name: str, source: Path, wanted: Wanted) -> ReadModel:
    try:
        if (source / DESCRIPTION).is_file():
            raise InvalidArgument(f"{source} is described by {DESCRIPTION}; publish it with `penstock models push {source}`")
        if source.is_file():
            return ReadModel(name, source, (_of_file(name, source, wanted),))
        read = cache(read_onnx)  # for what is not configured, and for the comparison
        rules = ReadRules(name=wanted.model, max_batch_size=wanted.max_batch_size, read_onnx=read)
        versions = tuple(_chosen(read_triton_folder(source, rules), wanted.version, source))
        for version in versions:
            check_loads(version, read)
        return ReadModel(name, source, versions)
    except PenstockError as error:
        return ReadModel(name, source, refused=error.message)


def _of_file(name: str, source: Path, wanted: Wanted) -> ModelFolder:
    version = read_onnx_file(source, name, max_batch_size=wanted.max_batch_size)
    manifest = models_pb2.Manifest()
    manifest.CopyFrom(version.manifest)
    manifest.version = wanted.version
    return replace(version, manifest=manifest)


def _chosen(versions: Sequence[ModelFolder], version: str, source: Path) -> Iterator[ModelFolder]:
    chosen = [each for each in versions if version in ("", each.manifest.version)]
    if not chosen:
        there = ", ".join(each.manifest.version for each in versions)
        raise InvalidArgument(f"{source} has no version {version} that its version_policy serves; it has: {there}")
    yield from chosen


def check_loads(version: ModelFolder, read: ReadOnnx = read_onnx) -> None:
    """What a worker checks before it loads, where it can be told without loading. Raises ModelRefused."""
    manifest = models_pb2.Manifest()
    manifest.CopyFrom(version.manifest)
    manifest.version = manifest.version or "1"
    spec = spec_of(manifest, Digest(""))
    if spec.engine == "onnx":
        path = spec.parameters.get("file", MAIN_FILES["onnx"])
        found = read(next(file.file for file in version.files if file.path == path))
        _check_names(version, spec, found)
        check_tensors(spec, [_found(each) for each in found.inputs], [_found(each) for each in found.outputs])


def _check_names(version: ModelFolder, spec: ModelSpec, found: OnnxTensors) -> None:
    """Both sides are shown: which of them is wrong is for a person to say."""
    inputs, outputs = {each.name for each in found.inputs}, {each.name for each in found.outputs}
    for what, described, there, allowed in (
        ("inputs", {each.name for each in engine_inputs(spec)}, inputs, set[str]()),
        ("outputs", {each.name for each in engine_outputs(spec)}, outputs, outputs),
    ):
        if described - there or there - described - allowed:
            raise InvalidArgument(
                f"{version.root}: configuration and file do not fit: {what} are {listed(described)} in the configuration,"
                f" and {listed(there)} in the file"
            )


def _found(tensor: OnnxTensor) -> Found:
    return Found(tensor.name, tensor.datatype, tensor.shape or None)
