"""Model folders as they lie on this machine: which there are, and what the worker serves of one.

A folder is described by `model.toml`, or is one of a Triton repository with its numbered versions; a load may bring another
configuration and other files. No registry, no signature: who may write into a folder decides what runs. Blocking; call it in
a thread.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from inference import model_config_pb2

from runtime.errors import PenstockError
from runtime.ids import Digest, ModelVersion
from runtime.load_overrides import SOURCE, LoadOverride, check_engine
from runtime.model_folder import (
    DESCRIPTION,
    ModelFile,
    ModelFolder,
    ModelFolderRefused,
    complete_manifest,
    describes_model,
    hash_file,
    model_name,
    read_versions,
)
from runtime.model_overlay import overlaid
from runtime.onnx_io import read_onnx
from runtime.triton_engines import MAIN_FILES
from runtime.triton_folder import ReadRules, read_triton_folder, versions_in
from worker.spec import spec_of
from worker.threads import check_wanted
from worker.types import ModelSpec

VERSION = "1"
"""Of a model whose description knows no versions."""


@dataclass(frozen=True, slots=True)
class FoundFolder:
    folder: Path
    name: str
    """The model's; the folder's own where the description cannot be read."""
    version: ModelVersion
    """The newest that is there."""


@dataclass(frozen=True, slots=True)
class Served:
    """A version to be served, and the folder that its files' paths begin at."""

    spec: ModelSpec
    root: Path


def find_folders(folders: Iterable[Path], repositories: Iterable[Path], known: Mapping[Path, str]) -> list[FoundFolder]:
    """These folders, and every sub-folder of the repositories that describes a model; `known` ones keep their names."""
    paths = list(dict.fromkeys((*folders, *(path for each in repositories for path in _described(each)))))
    return [FoundFolder(path, known.get(path) or _name_of(path), _newest(path)) for path in paths]


def read_served(folder: Path, override: LoadOverride | None = None, name: str = "") -> tuple[Served, ...]:
    """The versions of a folder's model, ascending, with the digests that their manifests would have.

    With an override: as that configures it. If it brings files, `folder` is where they lie, and `name` is the model's.
    Raises ModelFolderRefused, TritonConfigRefused, OnnxUnreadable, OverrideRefused, ModelRefused.
    """
    versions = read_versions(folder, check_wanted) if override is None else _overridden(folder, override, name)
    return tuple(_served(folder, version) for version in versions)


def _overridden(folder: Path, override: LoadOverride, name: str) -> tuple[ModelFolder, ...]:
    config = override.parsed()
    if not override.files and (folder / DESCRIPTION).is_file():
        versions: tuple[ModelFolder, ...] = (_with_config(read_versions(folder, check_wanted)[-1], config),)
    else:
        read = partial(read_onnx, check_wanted=check_wanted)
        rules = ReadRules(config, name, latest_only=True, read_onnx=read, source=SOURCE)
        versions = read_triton_folder(folder, rules)
        before = None if override.files else read_versions(folder, check_wanted)[-1].manifest.engine
        for engine in {before or versions[-1].manifest.engine, *(each.manifest.engine for each in versions)}:
            check_engine(name, engine)
    return versions


def _with_config(described: ModelFolder, config: model_config_pb2.ModelConfig) -> ModelFolder:
    """What `model.toml` says that a configuration has no word for stays."""
    check_engine(described.manifest.model, described.manifest.engine)
    manifest = overlaid(SOURCE, described.manifest, {file.path for file in described.files}, config)
    return replace(described, manifest=manifest)


def _served(folder: Path, version: ModelFolder) -> Served:
    placed = _in_place(folder, version)
    digests = {file.path: hash_file(file.file, check_wanted) for file in placed.files}
    manifest = complete_manifest(placed, placed.manifest.version or VERSION, digests)
    digest = Digest(hashlib.sha256(manifest.SerializeToString(deterministic=True)).hexdigest())
    return Served(spec_of(manifest, digest), placed.root or folder)


def _in_place(folder: Path, version: ModelFolder) -> ModelFolder:
    """Paths that lead to the files where they lie: of a version with warm-up data beside it, from the model's folder."""
    root = version.root or folder
    if all(root / file.path == file.file for file in version.files):
        return version
    engine = version.manifest.engine
    if engine not in ("onnx", "torch", "litert", "tensorrt"):
        raise ModelFolderRefused(
            f"{root}: engine {engine!r} is served from the version's own folder; put the warm-up data into it"
        )
    manifest = type(version.manifest).FromString(version.manifest.SerializeToString())
    manifest.parameters["file"] = f"{root.name}/{manifest.parameters.get('file') or MAIN_FILES[engine]}"
    own = {file.path for file in version.files if root / file.path == file.file}
    for warm_up in manifest.warm_ups:
        for given in warm_up.inputs.values():
            if given.file in own:
                given.file = f"{root.name}/{given.file}"
    files = tuple(ModelFile(file.file, file.file.relative_to(folder).as_posix(), file.size_bytes) for file in version.files)
    return replace(version, manifest=manifest, files=files, root=folder)


def _described(repository: Path) -> list[Path]:
    try:
        return sorted(path for path in repository.iterdir() if not path.name.startswith(".") and describes_model(path))
    except OSError:
        return []  # one that is away for now holds nothing


def _name_of(folder: Path) -> str:
    try:
        return model_name(folder)
    except PenstockError:
        return folder.name


def _newest(folder: Path) -> ModelVersion:
    if (folder / DESCRIPTION).is_file():
        return ModelVersion(VERSION)
    try:
        return ModelVersion(str(max(versions_in(folder), default=VERSION)))
    except PenstockError:
        return ModelVersion(VERSION)
