"""What the registry accepts, as tables and as invariants."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.policy import is_live, key_faults, manifest_faults, model_faults, path_fault, tenant_faults, whole_rate_limit
from registry.types import ApiKey, KeyRole, KeyWish, ManifestFacts, ModelFile, RateLimit, TensorFacts
from runtime.ids import Digest, KeyId, ModelName, ModelVersion, TenantId

SHA256 = Digest("ab" * 32)
GOOD = ManifestFacts(
    model=ModelName("digits"),
    version=ModelVersion("1"),
    engine="onnx",
    task="tensor",
    files=(ModelFile("model.onnx", SHA256, 10), ModelFile("extra/labels.txt", SHA256, 10)),
    inputs=(TensorFacts("image", "FP32", (1, 8, 8)),),
    outputs=(TensorFacts("scores", "FP32", (10,)), TensorFacts("label", "BYTES", (-1,))),
    max_batch_size=32,
    preferred_batch_sizes=(8, 32),
)
WISH = KeyWish(TenantId("acme"), "app", KeyRole.CALLER, (ModelName("digits"),), RateLimit(1.0, 1), 0)


def file(path: str, sha256: str = SHA256) -> ModelFile:
    return ModelFile(path, Digest(sha256), 1)


def test_a_good_manifest_and_a_good_wish_have_no_faults() -> None:
    assert manifest_faults(GOOD) == []
    assert key_faults(WISH) == []


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        (replace(GOOD, model=ModelName("a/b")), "model name"),
        (replace(GOOD, version=ModelVersion("0")), "version"),
        (replace(GOOD, engine=""), "engine"),
        (replace(GOOD, engine="../x"), "engine"),
        (replace(GOOD, task="dance"), "task"),
        (replace(GOOD, files=()), "0 files"),
        (replace(GOOD, files=(file("a"),) * 10_001), "10001 files"),
        (replace(GOOD, files=(file("a", "AB" * 32),)), "sha256"),
        (replace(GOOD, files=(file("a"), file("a"))), "2 times"),
        (replace(GOOD, files=(file("a"), file("A"))), "2 times"),
        (replace(GOOD, files=(file("a"), file("a/b/c"))), "file and a folder"),
        (replace(GOOD, inputs=(TensorFacts("", "FP32", ()),)), "name"),
        (replace(GOOD, inputs=(TensorFacts("x", "FLOAT", ()),)), "datatype"),
        (replace(GOOD, outputs=(TensorFacts("x", "FP32", (-2,)),)), "shape"),
        (replace(GOOD, outputs=(TensorFacts("x", "FP32", ()),) * 2), "2 times"),
        (replace(GOOD, preferred_batch_sizes=(33,)), "[33]"),
        (replace(GOOD, max_batch_size=0), "[8, 32]"),
    ],
)
def test_a_fault_of_a_manifest_is_named(wrong: ManifestFacts, word: str) -> None:
    (fault,) = manifest_faults(wrong)[:1]
    assert word in fault


def test_all_faults_are_named_at_once() -> None:
    assert len(manifest_faults(ManifestFacts(ModelName(""), ModelVersion(""), "", "", ()))) == 5


@given(st.text(alphabet=st.sampled_from("ab./\\:\0 é-"), max_size=30) | st.text(max_size=30))
def test_an_accepted_path_stays_inside_on_every_system(path: str) -> None:
    if path_fault(path) is not None:
        return
    for kind in (PurePosixPath, PureWindowsPath):
        pure = kind(path)
        assert not pure.is_absolute()
        assert not pure.drive
        assert pure.parts
        assert not {"..", ".", ""} & set(pure.parts)
    assert "/".join(PurePosixPath(path).parts) == path, "one spelling for one file"


@given(st.text(max_size=70))
def test_accepted_names_fit_into_keys_and_paths(name: str) -> None:
    for faults in (model_faults(name), tenant_faults(name)):
        if not faults:
            assert name.isascii()
            assert not set("/\\ \0:") & set(name)
            assert not name.startswith(".")


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (RateLimit(0.0, 0), RateLimit(0.0, 0)),
        (RateLimit(2.5, 0), RateLimit(2.5, 3)),
        (RateLimit(0.1, 0), RateLimit(0.1, 1)),
        (RateLimit(2.5, 9), RateLimit(2.5, 9)),
        (RateLimit(1e300, 0), RateLimit(1e300, 2**31 - 1)),
    ],
)
def test_a_rate_has_a_burst(limit: RateLimit, expected: RateLimit) -> None:
    assert whole_rate_limit(limit) == expected


@given(
    expires_at_ms=st.integers(0, 100),
    revoked_at_ms=st.integers(0, 100),
    now_ms=st.integers(0, 100),
    later_ms=st.integers(0, 100),
)
def test_a_dead_key_never_lives_again(expires_at_ms: int, revoked_at_ms: int, now_ms: int, later_ms: int) -> None:
    key = ApiKey(
        KeyId("k"),
        WISH.tenant,
        "",
        KeyRole.CALLER,
        (),
        RateLimit(),
        0,
        expires_at_ms=expires_at_ms,
        revoked_at_ms=revoked_at_ms,
    )
    if not is_live(key, now_ms):
        assert not is_live(key, now_ms + later_ms)
    assert is_live(replace(key, expires_at_ms=0, revoked_at_ms=0), now_ms)
