"""What is accepted of models: names, sharing, manifests, aliases; and who may work with what.

Pure: values in, values out. A "no" is the list of what is wrong, in words; who asks makes an error of it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from registry.access.types import Principal
from registry.models.types import STABLE, ManifestFacts, Model, Signer, TensorFacts
from runtime.identity import Role
from runtime.ids import EVERY_TENANT, ModelName
from runtime.model_description import DATATYPES, TASKS

MAX_MANIFEST_BYTES = 4 * 1024 * 1024
MAX_FILES = 10_000
MAX_PATH_CHARACTERS = 512
MAX_DESCRIPTION_CHARACTERS = 4_096
MAX_REASON_CHARACTERS = 500
MAX_SHARED_WITH = 1_000
MAX_WEIGHT = 100
MAX_ENDORSED_PATTERNS = 100
NEWEST = "latest"
"""Taken: clients of other servers write it for the newest version."""

_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")  # fits a signed 64-bit column
_ALIAS = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_ENGINE = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_TENANT = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SIGNER = re.compile(r"[0-9a-f]{20}")


def is_sha256(text: str) -> bool:
    return _SHA256.fullmatch(text) is not None


def is_version(text: str) -> bool:
    return _VERSION.fullmatch(text) is not None


def is_signer_id(text: str) -> bool:
    return _SIGNER.fullmatch(text) is not None


def sees(principal: Principal, model: Model) -> bool:
    """Whether the model is there for this caller: of its tenant, or shared with it; on its key's list; a worker's to load."""
    listed = not principal.allowed_models or model.model in principal.allowed_models
    tenant, shared_with = model.tenant, model.shared_with
    return listed and principal.sees(tenant, shared_with) and principal.may_load(tenant, shared_with)


def shown_to(principal: Principal, model: Model) -> Model:
    """The model as this caller may know it: whom else its owner shares it with is the owner's business."""
    if principal.tenant in (None, model.tenant):
        return model
    return replace(model, shared_with=model.shared_with & {str(principal.tenant), EVERY_TENANT})


def may_use_anybodys_files(principal: Principal) -> bool:
    """Whether a version may be made of files that its tenant did not upload: operators move models between tenants."""
    return principal.node_role is Role.OPERATOR


def model_faults(model: str, description: str = "", shared_with: Iterable[str] = ()) -> list[str]:
    faults = []
    if not _MODEL.fullmatch(model):
        faults.append(
            f"model name {_shown(model)}: up to 128 of A-Z a-z 0-9 . _ - are allowed, starting with a letter or digit"
        )
    if len(description) > MAX_DESCRIPTION_CHARACTERS:
        faults.append(f"a description of {len(description)} characters: up to {MAX_DESCRIPTION_CHARACTERS} are allowed")
    return faults + _text_faults("a description", description) + sharing_faults(shared_with)


def tenant_faults(tenant: str) -> list[str]:
    if _TENANT.fullmatch(tenant):
        return []
    return [f"tenant {_shown(tenant)}: up to 63 of a-z 0-9 - are allowed, starting with a letter or digit"]


def sharing_faults(shared_with: Iterable[str]) -> list[str]:
    tenants = list(shared_with)
    if len(tenants) > MAX_SHARED_WITH:
        return [f"shared with {len(tenants)} tenants: up to {MAX_SHARED_WITH} are allowed, or {EVERY_TENANT!r} for all"]
    return [
        f"shared with {_shown(tenant)}: up to 63 of a-z 0-9 - are allowed, starting with a letter or digit, or {EVERY_TENANT!r}"
        for tenant in tenants
        if tenant != EVERY_TENANT and not _TENANT.fullmatch(tenant)
    ]


def reason_faults(reason: str) -> list[str]:
    if len(reason) > MAX_REASON_CHARACTERS:
        return [f"a reason of {len(reason)} characters: up to {MAX_REASON_CHARACTERS} are allowed"]
    return _text_faults("a reason", reason)


def version_faults(version: str) -> list[str]:
    if is_version(version):
        return []
    return [f"version {_shown(version)}: a positive decimal number without leading zeros is expected"]


def alias_faults(alias: str) -> list[str]:
    if alias == NEWEST:
        return [f"alias {NEWEST!r}: it is taken, because others call the newest version so; choose another name"]
    if not _ALIAS.fullmatch(alias):
        return [f"alias {_shown(alias)}: up to 64 of a-z 0-9 _ - are allowed, starting with a letter"]
    return []


def weight_faults(alias: str, weight: int) -> list[str]:
    if alias == STABLE and weight:
        return [f"weight {weight} for {STABLE!r}: it gets what the other aliases leave; give 0"]
    if not 0 <= weight <= MAX_WEIGHT:
        return [f"weight {weight}: 0 to {MAX_WEIGHT} percent are allowed"]
    return []


def path_fault(path: str) -> str | None:
    """Why a file of a model may not be called so: it has to stay inside the model's folder on every system."""
    if not path or len(path) > MAX_PATH_CHARACTERS:
        return f"path {_shown(path)}: 1 to {MAX_PATH_CHARACTERS} characters are allowed"
    if "\\" in path or ":" in path or not path.isprintable():
        return f"path {_shown(path)}: no backslash, colon or control character is allowed"
    if any(segment in ("", ".", "..") or len(segment.encode()) > 255 for segment in path.split("/")):
        return f"path {_shown(path)}: it must be relative, without empty, '.' or '..' parts"
    return None


def manifest_faults(facts: ManifestFacts) -> list[str]:
    """All that keeps this manifest from being published, whatever is stored."""
    faults = model_faults(facts.model) + tenant_faults(facts.tenant) + version_faults(facts.version)
    if not _ENGINE.fullmatch(facts.engine):
        faults.append(f"engine {_shown(facts.engine)}: a name such as onnx or llm is expected")
    if facts.task not in TASKS:
        faults.append(f"task {_shown(facts.task)}: one of {', '.join(TASKS)} is expected")
    faults += _file_faults(facts)
    faults += _tensor_faults("input", facts.inputs) + _tensor_faults("output", facts.outputs)
    if too_large := [size for size in facts.preferred_batch_sizes if not 0 < size <= facts.max_batch_size]:
        faults.append(f"preferred batch sizes {too_large}: 1 to max_batch_size ({facts.max_batch_size}) are allowed")
    return faults + list(facts.trait_faults)


def endorsement_faults(signer: Signer, models: list[str], public_key: bytes, now_ms: int) -> list[str]:
    """All that keeps this endorsement from being taken, whatever is stored."""
    faults = tenant_faults(signer.tenant)
    if len(public_key) != 32:
        faults.append(f"a key of {len(public_key)} bytes: an Ed25519 public key has 32")
    if len(signer.name) > 128 or (signer.name and not signer.name.isprintable()):
        faults.append(f"signer name {_shown(signer.name)}: up to 128 printable characters are allowed")
    if not 0 < len(models) <= MAX_ENDORSED_PATTERNS or any(not 0 < len(pattern) <= 128 for pattern in models):
        faults.append(f"{len(models)} patterns of models: 1 to {MAX_ENDORSED_PATTERNS} of up to 128 characters are expected")
    if signer.expires_at_ms and signer.expires_at_ms <= now_ms:
        faults.append("the endorsement has expired already; sign one that lasts longer")
    return faults


def renewal_fault(known: Signer, wanted: Signer) -> str | None:
    """Why an endorsement may not take the place of the one that is known: nobody brings back what was taken away."""
    if known.revoked_at_ms:
        return f"signer {known.signer_id} was revoked for tenant {known.tenant} and stays so; endorse another key"
    if wanted.endorsed_at_ms < known.endorsed_at_ms:
        return f"a newer endorsement of signer {known.signer_id} for tenant {known.tenant} is known; sign a new one"
    return None


def version_subject(model: ModelName, version: str) -> str:
    """A version, as the subject of an audit entry."""
    return f"{model}/{version}"


def _file_faults(facts: ManifestFacts) -> list[str]:
    if not 0 < len(facts.files) <= MAX_FILES:
        return [f"{len(facts.files)} files: 1 to {MAX_FILES} are allowed"]
    faults = [fault for file in facts.files if (fault := path_fault(file.path))]
    faults += [
        f"file {_shown(file.path)}: its sha256 is not 64 lower-case hex digits"
        for file in facts.files
        if not is_sha256(file.sha256)
    ]
    # Folded, because on some systems two such names are one file.
    paths = Counter(file.path.casefold() for file in facts.files)
    faults += [f"path {_shown(path)} is named {count} times" for path, count in paths.items() if count > 1]
    folders = {path[:cut] for path in paths for cut, mark in enumerate(path) if mark == "/"}
    return faults + [f"path {_shown(path)} is a file and a folder at once" for path in sorted(paths.keys() & folders)]


def _tensor_faults(what: str, tensors: Iterable[TensorFacts]) -> list[str]:
    faults = []
    for name, count in Counter(tensor.name for tensor in tensors).items():
        if not name or len(name) > 256:
            faults.append(f"{what} {_shown(name)}: a name of 1 to 256 characters is expected")
        if count > 1:
            faults.append(f"{what} {_shown(name)} is named {count} times")
    for tensor in tensors:
        if tensor.datatype not in DATATYPES:
            faults.append(f"{what} {_shown(tensor.name)}: datatype {_shown(tensor.datatype)} is none of KServe's")
        if any(size < -1 for size in tensor.shape):
            faults.append(f"{what} {_shown(tensor.name)}: shape {list(tensor.shape)}: sizes are at least 0, or -1 for variable")
    return faults


def _text_faults(what: str, text: str) -> list[str]:
    """Of words for people, which go to terminals and into PostgreSQL, which takes no NUL."""
    if all(letter.isprintable() or letter in "\n\t" for letter in text):
        return []
    return [f"{what} with control characters: printable ones, line breaks and tabs are allowed"]


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "…")
