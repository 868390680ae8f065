"""What RepositoryModelLoad's parameters say: another configuration for a model, and files to load instead of the repository's.

A codec with bounds, shared by those who serve the RPC. Source: Triton's protocol/extension_model_repository.md, and its
core/src/model_repository_manager.cc for what goes with what.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from inference import grpc_service_pb2 as pb
from inference import model_config_pb2

from runtime.errors import Code, InvalidArgument, PenstockError
from runtime.triton_config import parse_json
from runtime.triton_engines import is_inside

MAX_FILES = 1_000
ENGINES = ("onnx", "torch", "litert", "tensorrt")
"""Whose files are data. What an override could make of the others is code, or calls to elsewhere."""

SOURCE = "parameter 'config'"
_FILE = "file:"
_VERSION = re.compile(r"[1-9][0-9]{0,17}")


class OverrideRefused(PenstockError, code=Code.PERMISSION_DENIED, reason="OVERRIDE_REFUSED"):
    """A load with a configuration or files of a kind that only whoever owns the repository may bring."""


class OverrideTooLarge(PenstockError, code=Code.RESOURCE_EXHAUSTED, reason="OVERRIDE_TOO_LARGE"):
    """Files of overrides take more room than they may."""


@dataclass(frozen=True, slots=True)
class LoadOverride:
    """A configuration, and the files of an override by version and path; without files the repository's are used."""

    config: str
    """JSON of Triton's ModelConfig."""
    files: Mapping[tuple[int, str], bytes]

    @property
    def size_bytes(self) -> int:
        return sum(len(content) for content in self.files.values())

    @property
    def versions(self) -> list[int]:
        """Of the files, ascending."""
        return sorted({version for version, _ in self.files})

    def parsed(self) -> model_config_pb2.ModelConfig:
        """Raises TritonConfigRefused."""
        return parse_json(SOURCE, self.config)


def override_of(parameters: Mapping[str, pb.ModelRepositoryParameter], max_bytes: int) -> LoadOverride | None:
    """None where there are no parameters. Raises InvalidArgument, OverrideTooLarge."""
    config: str | None = None
    files: dict[tuple[int, str], bytes] = {}
    for name, parameter in parameters.items():
        if name == "config":
            config = parameter.string_param
            _check_type(name, parameter, "string_param")
        elif name.startswith(_FILE):
            _check_type(name, parameter, "bytes_param")
            files[_place_of(name)] = parameter.bytes_param
        else:
            raise InvalidArgument(f"unrecognized load parameter '{name[:80]}'; known: config, file:<version>/<file>")
    if config is None and not files:
        return None
    if config is None:
        raise InvalidArgument("files of a load need parameter 'config' as well: the configuration to load them with, as JSON")
    override = LoadOverride(config, files)
    _check_files(override, max_bytes)
    return override


def check_engine(model: str, engine: str) -> None:
    """Whether an override may make such a model. Raises OverrideRefused."""
    if engine not in ENGINES:
        raise OverrideRefused(
            f"failed to load '{model[:200]}', a model of engine {engine!r} is loaded as it was put into the repository; a load"
            f" with parameters can be of: {', '.join(ENGINES)}"
        )


def write_files(override: LoadOverride, folder: Path) -> None:
    """As a Triton model folder without a configuration. Blocking; call it in a thread."""
    for (version, path), content in override.files.items():
        file = folder / str(version) / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


def _check_type(name: str, parameter: pb.ModelRepositoryParameter, expected: str) -> None:
    if parameter.WhichOneof("parameter_choice") != expected:
        raise InvalidArgument(f"invalid value type for load parameter '{name[:80]}', expected {expected}.")


def _place_of(name: str) -> tuple[int, str]:
    version, _, path = name.removeprefix(_FILE).partition("/")
    if not _VERSION.fullmatch(version) or not is_inside(path):
        raise InvalidArgument(
            f"load parameter '{name[:80]}' names no file; the form is file:<version>/<file>, such as file:1/model.onnx"
        )
    return int(version), path


def _check_files(override: LoadOverride, max_bytes: int) -> None:
    if len(override.files) > MAX_FILES:
        raise OverrideTooLarge(f"a load brings {len(override.files)} files; up to {MAX_FILES} are taken")
    if override.size_bytes > max_bytes:
        raise OverrideTooLarge(
            f"a load brings files of {override.size_bytes} bytes; up to {max_bytes} are taken; publish larger models instead"
        )
    for version, path in override.files:
        segments = path.split("/")
        if any((version, "/".join(segments[:count])) in override.files for count in range(1, len(segments))):
            raise InvalidArgument(f"load parameter 'file:{version}/{path[:80]}' lies inside of another file")
