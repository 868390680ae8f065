"""Whose code runs, and for whom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inference import grpc_service_pb2 as pb

from runtime.errors import Code, FailedPrecondition
from tests.support.public_models import python_affine
from tests.worker.onnx_models import identity, spec
from worker.copies import LoadedModel, open_model
from worker.runner.code_trust import CodeNotTrusted, CodeSigners, CodeTrust, TrustedCopy, read_code_signers
from worker.types import CallContext, Kind, ModelSpec

ANN, BOB, EVE = (bytes([number]) * 32 for number in (1, 2, 3))
TRUST = CodeTrust({ANN: frozenset({"acme", "umbrella"}), BOB: frozenset({"*"})})


def code(signer: bytes) -> ModelSpec:
    return replace(spec(engine="python"), signer=signer)


def may_load(trust: CodeTrust, described: ModelSpec) -> bool:
    try:
        trust.check_load(described)
    except CodeNotTrusted:
        return False
    return True


def may_call(trust: CodeTrust, described: ModelSpec, tenant: str) -> bool:
    try:
        trust.check_call(described, tenant)
    except CodeNotTrusted:
        return False
    return True


@pytest.mark.parametrize(
    ("signer", "loads", "calls"),
    [
        (ANN, True, {"acme": True, "umbrella": True, "other": False, "": False, "*": False}),
        (BOB, True, {"acme": True, "other": True, "": True}),
        (EVE, False, {"acme": False, "other": False, "*": False}),
        (b"", False, {}),
    ],
)
def test_a_signer_is_trusted_by_tenant(signer: bytes, loads: bool, calls: Mapping[str, bool]) -> None:
    assert may_load(TRUST, code(signer)) is loads
    assert {tenant: may_call(TRUST, code(signer), tenant) for tenant in calls} == calls


def test_nobodys_code_runs_by_default() -> None:
    assert not any(may_load(CodeTrust(), code(signer)) for signer in (ANN, BOB, EVE, b""))


def test_unsigned_code_is_allowed_by_its_own_switch_alone() -> None:
    trust = CodeTrust(allow_unsigned=True)
    assert may_load(trust, code(b""))
    assert may_call(trust, code(b""), "")
    assert not may_load(trust, code(EVE))


def test_models_without_code_are_nobodys_business_here() -> None:
    for signer in (b"", EVE):
        plain = replace(spec(), signer=signer)
        assert may_load(CodeTrust(), plain)
        assert may_call(CodeTrust(), plain, "anybody")


def test_the_file(tmp_path: Path) -> None:
    file = tmp_path / "signers"
    file.write_text(f"# who\n{ANN.hex()} acme\n\n{BOB.hex().upper()}\t*  # for all\n{ANN.hex()} umbrella\n")
    assert read_code_signers(file) == TRUST.tenants


@pytest.mark.parametrize("line", [ANN.hex(), f"{ANN.hex()[2:]} acme", "not-hex acme", f"{ANN.hex()} acme umbrella", "* acme"])
def test_a_line_that_says_nothing_is_refused_with_its_number(tmp_path: Path, line: str) -> None:
    file = tmp_path / "signers"
    file.write_text(f"{BOB.hex()} *\n{line}\n")
    with pytest.raises(FailedPrecondition, match="line 2 of"):
        read_code_signers(file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="cannot read the code signers"):
        CodeSigners(tmp_path / "none").read()


@given(st.dictionaries(st.binary(min_size=32, max_size=32), st.sets(st.sampled_from(["a", "b", "*"]), min_size=1)), st.data())
def test_who_may_call_could_load(tenants: dict[bytes, set[str]], data: st.DataObject) -> None:
    trust = CodeTrust({key: frozenset(names) for key, names in tenants.items()})
    signer = data.draw(st.sampled_from([EVE, *tenants]))
    tenant = data.draw(st.sampled_from(["a", "b", "c", ""]))
    if may_call(trust, code(signer), tenant):
        assert may_load(trust, code(signer))
        assert {tenant, "*"} & tenants[signer]


def request(value: float) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="m", raw_input_contents=[np.full((1, 2), value, np.float32).tobytes()])
    message.inputs.add(name="x", datatype="FP32", shape=(1, 2))
    return message


async def answered(loaded: LoadedModel, tenant: str) -> list[float]:
    assert loaded.kind is Kind.TENSORS
    response = await loaded.infer(request(3), CallContext(tenant=tenant))
    return list(np.frombuffer(response.raw_output_contents[0], np.float32))


async def test_code_answers_those_who_trust_it_and_nobody_else(tmp_path: Path) -> None:
    signers = tmp_path / "signers"
    signers.write_text(f"{ANN.hex()} acme\n")
    folder = python_affine(tmp_path / "m")
    loaded = await open_model(code(ANN), folder, code=CodeSigners(signers))
    assert isinstance(loaded, TrustedCopy)
    assert await answered(loaded, "acme") == [7, 7]
    with pytest.raises(CodeNotTrusted, match="tenant 'other' does not trust with code here") as refused:
        await answered(loaded, "other")
    assert refused.value.code is Code.PERMISSION_DENIED
    assert not loaded.busy
    assert (loaded.queued_rows, loaded.pending_requests) == (0, 0)
    await loaded.drained()
    loaded.close()


async def test_what_is_not_trusted_is_never_started(tmp_path: Path) -> None:
    folder = python_affine(tmp_path / "m")
    (folder / "model.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    for signer, signers in ((ANN, CodeSigners()), (b"", CodeSigners()), (EVE, CodeSigners(allow_unsigned=True))):
        with pytest.raises(CodeNotTrusted):
            await open_model(code(signer), folder, code=signers)
    assert not (tmp_path / "ran").exists()


async def test_other_engines_need_no_trust(tmp_path: Path) -> None:
    loaded = await open_model(spec(), identity(tmp_path, "FP32"))
    assert await answered(loaded, "anybody") == [3, 3]
    loaded.close()
