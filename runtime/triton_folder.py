"""A model's folder in a Triton repository: `config.pbtxt`, label files and numbered folders of versions, read into manifests.

Decides which folders are versions, which files are a version's, and where what the configuration leaves out comes from: an ONNX
file is asked for its inputs and outputs. Never signs, uploads or loads. Blocking; call it in a thread.

Source: Triton's user_guide/model_repository.md, "Auto-Generated Model Configuration" in model_configuration.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from inference import model_config_pb2 as pb
from penstock.registry.v1 import models_pb2

from runtime.description_table import ModelFolderRefused
from runtime.model_description import checked_name
from runtime.model_files import ModelFile, ModelFolder
from runtime.onnx_io import OnnxTensors, OnnxUnreadable, completed, read_onnx
from runtime.triton_config import (
    MAX_CONFIG_BYTES,
    MAX_LABEL_BYTES,
    WARM_UP_FOLDER,
    carry,
    check_fields,
    chosen_versions,
    labels_of,
    parse_text,
)
from runtime.triton_engines import MAIN_FILES
from runtime.triton_scheduling import Reading

CONFIG = "config.pbtxt"
MAX_VERSIONS = 1_000
MAX_FILES = 10_000
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
ReadOnnx = Callable[[Path], OnnxTensors]


@dataclass(frozen=True, slots=True)
class ReadRules:
    """How a folder is read."""

    config: pb.ModelConfig | None = None
    """Instead of the folder's own."""
    name: str = ""
    """Instead of the folder's and the configuration's."""
    latest_only: bool = False
    """Where no version_policy is given: what Triton serves then. Else every version is read."""
    max_batch_size: int = 0
    """Of models that take batches and have no configuration; 0: Triton's default."""
    read_onnx: ReadOnnx = read_onnx
    source: str = ""
    """What `config` is called in sentences."""


_RULES = ReadRules()


def is_triton_folder(folder: Path) -> bool:
    """Whether it has a `config.pbtxt`, or a version with a file that tells its engine."""
    if (folder / CONFIG).is_file():
        return True
    usual = set(MAIN_FILES.values())
    return any(usual & {entry.name for entry in (folder / str(version)).iterdir()} for version in versions_in(folder))


def versions_in(folder: Path) -> list[int]:
    """Numbers of the version folders, ascending. Names that are no numbers, or begin with 0, are none (as with Triton)."""
    try:
        found = sorted(int(entry.name) for entry in folder.iterdir() if _VERSION.fullmatch(entry.name) and entry.is_dir())
    except OSError as error:
        raise ModelFolderRefused(f"{folder} cannot be read: {error}") from error
    if len(found) > MAX_VERSIONS:
        raise ModelFolderRefused(f"{folder} has {len(found)} versions; up to {MAX_VERSIONS} are read")
    return found


def triton_name(folder: Path) -> str:
    """The model's name, without reading more than the configuration. Raises TritonConfigRefused."""
    config = _config_of(folder)
    return (config.name if config is not None else "") or folder.absolute().name


def read_triton_folder(folder: Path, rules: ReadRules = _RULES) -> tuple[ModelFolder, ...]:
    """A manifest and files for each version to be served, ascending; each manifest has its version.

    Raises TritonConfigRefused, OnnxUnreadable, ModelFolderRefused.
    """
    config = rules.config if rules.config is not None else _config_of(folder)
    source = rules.source or str(folder / CONFIG if rules.config is None and config is not None else folder)
    name = rules.name or folder.absolute().name
    if config is not None and config.name not in ("", name) and (not rules.name or rules.config is not None):
        raise ModelFolderRefused(
            f"{source}: name is {config.name[:128]!r}, and the model is {name!r}, after its folder; Triton wants them alike"
        )
    if config is not None:
        check_fields(Reading(source), config)  # what no files would make loadable is told first
    versions = versions_in(folder)
    if not versions:
        raise ModelFolderRefused(
            f"{folder} holds no version; a version is a folder named by a number from 1, with the model's file"
        )
    given = pb.ModelConfig() if config is None else pb.ModelConfig.FromString(config.SerializeToString())
    given.name = name
    chosen = chosen_versions(config, versions)
    if rules.latest_only and (config is None or not config.HasField("version_policy")):
        chosen = versions[-1:]
    if not chosen:
        shown = ", ".join(str(version) for version in versions)
        raise ModelFolderRefused(f"{source}: version_policy names none of the versions that are there: {shown}")
    return tuple(_version(folder, source, given, version, rules) for version in chosen)


def read_onnx_file(file: Path, name: str, *, max_batch_size: int = 0) -> ModelFolder:
    """A plain .onnx file as a model: all is read from it. Raises OnnxUnreadable, also where its weights lie elsewhere."""
    try:
        found = read_onnx(file, alone=True)
    except OnnxUnreadable as error:
        if "xternal data" not in error.message:  # ONNX Runtime's words
            raise
        raise OnnxUnreadable(
            f"{file}: its weights lie in files of their own; put all of them into a folder {name}/1/, and import {name}"
        ) from error
    manifest = models_pb2.Manifest(model=checked_name(str(file), name), engine="onnx", task="tensor")
    whole = completed(str(file), manifest, found, max_batch_size=max_batch_size)
    return ModelFolder(whole, (ModelFile(file, MAIN_FILES["onnx"], file.stat().st_size),), file.parent)


def _version(folder: Path, source: str, config: pb.ModelConfig, version: int, rules: ReadRules) -> ModelFolder:
    root = folder / str(version)
    files = list_files(root)
    if config.default_model_filename.startswith(f"{version}/"):  # as a worker that serves the folder in place tells it
        config = pb.ModelConfig.FromString(config.SerializeToString())
        config.default_model_filename = config.default_model_filename.removeprefix(f"{version}/")
    carried = carry(source, config, config.name, {file.path for file in files}, partial(_labels, source, (folder, root)))
    manifest, warnings = carried.manifest, list(carried.warnings)
    manifest.version = str(version)
    if not manifest.inputs or not manifest.outputs:
        manifest = _completed(source, root, manifest, rules)
        warnings.append("inputs and outputs that are not configured were read from the model")
    files += _warm_up_files(source, folder, root, manifest)
    return ModelFolder(manifest, tuple(files), root, tuple(warnings))


def _completed(source: str, root: Path, manifest: models_pb2.Manifest, rules: ReadRules) -> models_pb2.Manifest:
    if manifest.engine != "onnx":
        missing = " and ".join(name for name, given in (("input", manifest.inputs), ("output", manifest.outputs)) if not given)
        raise ModelFolderRefused(
            f"{source}: {missing} not configured, and only ONNX files are asked for theirs; write them into {CONFIG}"
        )
    file = root / (manifest.parameters["file"] if "file" in manifest.parameters else MAIN_FILES["onnx"])
    return completed(source, manifest, rules.read_onnx(file), max_batch_size=rules.max_batch_size)


def _config_of(folder: Path) -> pb.ModelConfig | None:
    file = folder / CONFIG
    if not file.is_file():
        return None
    try:
        with file.open("rb") as stream:
            return parse_text(str(file), stream.read(MAX_CONFIG_BYTES + 1).decode("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ModelFolderRefused(f"{file} cannot be read: {error}") from error


def list_files(root: Path) -> list[ModelFile]:
    """Every file below, by path; hidden ones are nobody's. Raises ModelFolderRefused."""
    files: list[ModelFile] = []
    for file in sorted(root.rglob("*")):
        path = file.relative_to(root)
        if any(part.startswith(".") or part == "__pycache__" for part in path.parts) or not file.is_file():
            continue
        if len(files) >= MAX_FILES:
            raise ModelFolderRefused(f"{root} holds more than {MAX_FILES} files")
        files.append(ModelFile(file, path.as_posix(), file.stat().st_size))
    return files


def _labels(source: str, folders: Sequence[Path], name: str) -> list[str]:
    """A line for each class, from the model's folder or the version's."""
    file = next((folder / name for folder in folders if (folder / name).is_file()), folders[0] / name)
    try:
        with file.open("rb") as stream:
            return labels_of(source, name, stream.read(MAX_LABEL_BYTES + 1))
    except OSError as error:
        raise ModelFolderRefused(f"{source}: label_filename {name[:80]!r} cannot be read: {error}") from error


def _warm_up_files(source: str, folder: Path, root: Path, manifest: models_pb2.Manifest) -> list[ModelFile]:
    """Warm-up data lies beside the versions; in the manifest it is a file of each."""
    found: dict[str, ModelFile] = {}
    for warm_up in manifest.warm_ups:
        for given in warm_up.inputs.values():
            if not given.file:
                continue
            if (root / given.file).is_file():
                continue  # a file of the version: listed already
            file, path = folder / WARM_UP_FOLDER / given.file, f"{WARM_UP_FOLDER}/{given.file}"
            if (root / path).exists():
                raise ModelFolderRefused(
                    f"{source}: {root / path} stands in the way of warm-up data {file}; rename one of them"
                )
            if not file.is_file():
                raise ModelFolderRefused(f"{source}: warm-up data {given.file[:80]!r} is not in {folder / WARM_UP_FOLDER}")
            found[path] = ModelFile(file, path, file.stat().st_size)
            given.file = path
    return list(found.values())
