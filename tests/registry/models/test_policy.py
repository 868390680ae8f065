"""What is accepted of models, as tables and as invariants."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.registry.v1 import models_pb2

from registry.models.codec import facts_of
from registry.models.policy import (
    alias_faults,
    is_version,
    manifest_faults,
    may_use_anybodys_files,
    model_faults,
    path_fault,
    renewal_fault,
    sees,
    sharing_faults,
    tenant_faults,
    weight_faults,
)
from registry.models.types import ManifestFacts, Model, ModelFile, Signer, TensorFacts
from runtime.identity import Role
from runtime.ids import Digest, ModelName, ModelVersion, NodeId, TenantId
from runtime.model_description import DATATYPES, TASKS
from tests.registry.harness import OPERATOR
from tests.registry.models.rig import node, person

SHA256 = Digest("ab" * 32)
GOOD = ManifestFacts(
    model=ModelName("digits"),
    tenant=TenantId("acme"),
    version=ModelVersion("1"),
    engine="onnx",
    task="tensor",
    files=(ModelFile("model.onnx", SHA256, 10), ModelFile("extra/labels.txt", SHA256, 10)),
    inputs=(TensorFacts("image", "FP32", (1, 8, 8)),),
    outputs=(TensorFacts("scores", "FP32", (10,)), TensorFacts("label", "BYTES", (-1,))),
    max_batch_size=32,
    preferred_batch_sizes=(8, 32),
)


def file(path: str, sha256: str = SHA256) -> ModelFile:
    return ModelFile(path, Digest(sha256), 1)


def test_a_good_manifest_has_no_faults() -> None:
    assert manifest_faults(GOOD) == []
    assert all(manifest_faults(replace(GOOD, task=task)) == [] for task in TASKS)
    assert all(manifest_faults(replace(GOOD, inputs=(TensorFacts("x", kind, ()),))) == [] for kind in DATATYPES)


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        (replace(GOOD, model=ModelName("a/b")), "model name"),
        (replace(GOOD, tenant=TenantId("A")), "tenant"),
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
        (replace(GOOD, trait_faults=("response_cache: it is not for a confidential model",)), "response_cache"),
    ],
)
def test_a_fault_of_a_manifest_is_named(wrong: ManifestFacts, word: str) -> None:
    (fault,) = manifest_faults(wrong)[:1]
    assert word in fault


def test_what_a_manifest_says_of_itself_is_looked_at() -> None:
    manifest = models_pb2.Manifest(model="m", response_cache=True, confidential=True)
    (fault,) = facts_of(manifest).trait_faults
    assert fault == "response_cache: it is not for a confidential model, whose answers nobody is to keep"


def test_all_faults_are_named_at_once() -> None:
    assert len(manifest_faults(ManifestFacts(ModelName(""), TenantId(""), ModelVersion(""), "", "", ()))) == 6


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


@pytest.mark.parametrize(
    "path", ["../escape", "/etc/passwd", "a//b", "a/../b", ".", "", "a\\b", "C:x", "a\0b", "a/", "a" * 256]
)
def test_a_path_that_leaves_or_is_none_is_refused(path: str) -> None:
    assert path_fault(path)


@given(st.text(max_size=70) | st.from_regex(r"[a-z][a-z0-9_-]{0,70}", fullmatch=True))
def test_accepted_names_fit_into_keys_and_paths_and_columns(name: str) -> None:
    for faults in (model_faults(name), tenant_faults(name), alias_faults(name), sharing_faults([name])):
        if not faults and name != "*":
            assert name.isascii()
            assert not set("/\\ \0:*") & set(name)
            assert not name.startswith(".")
            assert 0 < len(name) <= 128


@given(st.text(max_size=20) | st.from_regex(r"[0-9]{1,20}", fullmatch=True))
def test_no_name_is_both_a_number_and_an_alias(name: str) -> None:
    assert not is_version(name) or alias_faults(name)
    if is_version(name):
        assert 0 < int(name) < 2**63


@pytest.mark.parametrize(
    ("alias", "weight", "fits"),
    [("canary", 0, True), ("canary", 100, True), ("canary", 101, False), ("stable", 0, True), ("stable", 1, False)],
)
def test_weights_are_percent_and_stable_has_none(alias: str, weight: int, fits: bool) -> None:
    assert (weight_faults(alias, weight) == []) is fits


def test_who_sees_a_model() -> None:
    model = Model(ModelName("digits"), TenantId("acme"), "", frozenset({"globex"}), 0)
    assert sees(OPERATOR, model)
    assert sees(person("acme"), model)
    assert sees(person("globex"), model)
    assert not sees(person("initech"), model)
    assert sees(node(Role.WORKER), model)
    assert sees(node(Role.WORKER, "globex"), model)
    assert not sees(node(Role.WORKER, "initech"), model)
    assert not sees(replace(person("acme"), allowed_models=frozenset({ModelName("letters")})), model)


def test_operators_alone_use_anybodys_files() -> None:
    assert may_use_anybodys_files(OPERATOR)
    for principal in (person("acme"), node(Role.GATEWAY), node(Role.WORKER)):
        assert not may_use_anybodys_files(principal)


@given(revoked=st.booleans(), known_ms=st.integers(0, 5), wanted_ms=st.integers(0, 5))
def test_an_endorsement_is_only_replaced_by_one_that_is_not_older(revoked: bool, known_ms: int, wanted_ms: int) -> None:
    known = Signer(NodeId("k"), TenantId("acme"), "", b"", known_ms, NodeId("r"), revoked_at_ms=int(revoked))
    accepted = renewal_fault(known, replace(known, endorsed_at_ms=wanted_ms, revoked_at_ms=0)) is None
    assert accepted is (not revoked and wanted_ms >= known_ms)
