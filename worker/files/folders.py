"""Model folders as they lie on this machine: which there are, and what one describes.

No registry, no signature: who may write into a folder decides what runs. Blocking; call it in a thread.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import PenstockError
from runtime.ids import Digest
from runtime.model_folder import DESCRIPTION, complete_manifest, hash_file, read_model_folder
from worker.spec import spec_of
from worker.threads import check_wanted
from worker.types import ModelSpec

VERSION = "1"


@dataclass(frozen=True, slots=True)
class FoundFolder:
    folder: Path
    name: str
    """The model's; the folder's own where the description cannot be read."""


def find_folders(folders: Iterable[Path], repositories: Iterable[Path], known: Mapping[Path, str]) -> list[FoundFolder]:
    """These folders, and every sub-folder of the repositories that holds a description; `known` ones keep their names."""
    paths = list(dict.fromkeys((*folders, *(path for each in repositories for path in _described(each)))))
    return [FoundFolder(path, known.get(path) or _name_of(path)) for path in paths]


def read_spec(folder: Path) -> ModelSpec:
    """The folder's model as version 1, with the digest its manifest would have. Raises ModelFolderRefused, ModelRefused."""
    described = read_model_folder(folder)
    digests = {file.path: hash_file(file.file, check_wanted) for file in described.files}
    manifest = complete_manifest(described, VERSION, digests)
    return spec_of(manifest, Digest(hashlib.sha256(manifest.SerializeToString(deterministic=True)).hexdigest()))


def _described(repository: Path) -> list[Path]:
    try:
        return sorted(path for path in repository.iterdir() if not path.name.startswith(".") and (path / DESCRIPTION).is_file())
    except OSError:
        return []  # one that is away for now holds nothing


def _name_of(folder: Path) -> str:
    try:
        return read_model_folder(folder).manifest.model
    except PenstockError:
        return folder.name
