"""What the registry accepts: names, paths, manifests, keys; and whether a key is live.

Pure: values in, values out. A "no" is the list of what is wrong, in words; who asks makes an error of it.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable

from registry.types import ApiKey, KeyWish, ManifestFacts, RateLimit, TensorFacts

TASKS = ("tensor", "chat", "completion", "embedding")
DATATYPES = frozenset(
    # Source: Open Inference Protocol v2, "Tensor Data Types"; BF16 is Triton's addition.
    ["BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES", "BF16"]
)
MAX_FILES = 10_000
MAX_PATH_CHARACTERS = 512
MAX_DESCRIPTION_CHARACTERS = 4_096
MAX_LIFETIME_S = 100 * 366 * 86_400
MAX_ALLOWED_MODELS = 1_000

_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")  # fits a signed 64-bit column
_ENGINE = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_TENANT = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def is_sha256(text: str) -> bool:
    return _SHA256.fullmatch(text) is not None


def is_version(text: str) -> bool:
    return _VERSION.fullmatch(text) is not None


def model_faults(model: str, description: str = "") -> list[str]:
    faults = []
    if not _MODEL.fullmatch(model):
        faults.append(
            f"model name {_shown(model)}: up to 128 of A-Z a-z 0-9 . _ - are allowed, starting with a letter or digit"
        )
    if len(description) > MAX_DESCRIPTION_CHARACTERS:
        faults.append(f"a description of {len(description)} characters: up to {MAX_DESCRIPTION_CHARACTERS} are allowed")
    return faults


def tenant_faults(tenant: str) -> list[str]:
    if _TENANT.fullmatch(tenant):
        return []
    return [f"tenant {_shown(tenant)}: up to 63 of a-z 0-9 - are allowed, starting with a letter or digit"]


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
    """All that keeps this manifest from being published."""
    faults = model_faults(facts.model)
    if not is_version(facts.version):
        faults.append(f"version {_shown(facts.version)}: a positive decimal number without leading zeros is expected")
    if not _ENGINE.fullmatch(facts.engine):
        faults.append(f"engine {_shown(facts.engine)}: a name such as onnx or llm is expected")
    if facts.task not in TASKS:
        faults.append(f"task {_shown(facts.task)}: one of {', '.join(TASKS)} is expected")
    faults += _file_faults(facts)
    faults += _tensor_faults("input", facts.inputs) + _tensor_faults("output", facts.outputs)
    if too_large := [size for size in facts.preferred_batch_sizes if not 0 < size <= facts.max_batch_size]:
        faults.append(f"preferred batch sizes {too_large}: 1 to max_batch_size ({facts.max_batch_size}) are allowed")
    return faults


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


def key_faults(wish: KeyWish) -> list[str]:
    """All that keeps this key from being made."""
    faults = tenant_faults(wish.tenant)
    if len(wish.name) > 128 or (wish.name and not wish.name.isprintable()):
        faults.append(f"key name {_shown(wish.name)}: up to 128 printable characters are allowed")
    if wish.lifetime_s > MAX_LIFETIME_S:
        faults.append(f"a lifetime of {wish.lifetime_s} s: at most {MAX_LIFETIME_S} are allowed, or 0 for ever")
    if len(wish.allowed_models) > MAX_ALLOWED_MODELS:
        faults.append(f"{len(wish.allowed_models)} allowed models: at most {MAX_ALLOWED_MODELS} fit a key")
    for model in wish.allowed_models[:MAX_ALLOWED_MODELS]:
        faults += model_faults(model)
    limit = wish.rate_limit
    if not (math.isfinite(limit.requests_per_s) and limit.requests_per_s >= 0):
        faults.append(f"a rate limit of {limit.requests_per_s} requests/s: 0 for none, or a positive number is expected")
    elif limit.burst and not limit.requests_per_s:
        faults.append(f"a burst of {limit.burst} without a rate: give requests_per_s too")
    return faults


def whole_rate_limit(limit: RateLimit) -> RateLimit:
    """With a burst of one second's requests where none was given: a bucket that holds nothing admits nothing."""
    if limit.requests_per_s and not limit.burst:
        return RateLimit(limit.requests_per_s, min(math.ceil(limit.requests_per_s), 2**31 - 1))
    return limit


def is_live(key: ApiKey, now_ms: int) -> bool:
    return not key.revoked_at_ms and (not key.expires_at_ms or now_ms < key.expires_at_ms)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "…")
