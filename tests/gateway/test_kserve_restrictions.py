"""Groups of calls that need a header besides the key, as with Triton's --grpc-restricted-protocol; settings of processes."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio
import pytest
from inference import grpc_service_pb2 as pb

from gateway.kserve.restrictions import GROUPS, ProtocolRestricted, grpc_restrictions, http_restrictions
from runtime.errors import InvalidArgument
from tests.gateway.edge import ADMIN, gateway_under_test
from tests.gateway.fakes import copy_of, wish_of, worker_of

RPCS = {method.name for method in pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods}
HEADER = "triton-grpc-protocol-infer-key"


def test_every_rpc_is_in_one_group() -> None:
    assert sorted(rpc for group in GROUPS.values() for rpc in group) == sorted(RPCS)


@pytest.mark.parametrize("setting", ["", "  "])
def test_nothing_said_is_nothing_restricted(setting: str) -> None:
    assert grpc_restrictions(setting) is None
    assert http_restrictions(setting) is None


@pytest.mark.parametrize("setting", ["inference:Infer-Key=s3=cret", " inference , health : Infer-Key=s3=cret ; trace:t=x;"])
def test_a_value_opens_its_group_and_no_other_does(setting: str) -> None:
    found = grpc_restrictions(setting.replace(": I", ":I"))
    assert found is not None
    found.check("ModelConfig", {})
    found.check("ModelInfer", {HEADER: "s3=cret"})
    found.check("ModelInfer", {HEADER: b"s3=cret"})
    for headers in ({}, {HEADER: "s3=cre"}, {HEADER: ""}, {HEADER: "é"}, {"infer-key": "s3=cret"}):
        with pytest.raises(ProtocolRestricted, match=f"This protocol is restricted, expecting header '{HEADER}'"):
            found.check("ModelInfer", headers)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("inference", "rule 1 is not of the form"),
        ("inference:key", "rule 1 is not of the form"),
        ("inference:key=", "rule 1 is not of the form"),
        ("inference:a key=v", "rule 1 is not of the form"),
        ("health:k=v;nothing:k=v", "rule 2 names group 'nothing'"),
        ("health:k=v;health:k=w", "group 'health' is in two rules"),
    ],
)
def test_rules_that_are_none_are_named_without_their_value(setting: str, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        grpc_restrictions(setting)


def metadata(*more: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {ADMIN}"), *more)


async def code_of(call: Any) -> tuple[grpc.StatusCode, str]:
    try:
        await call
    except grpc.aio.AioRpcError as failure:
        return failure.code(), failure.details() or ""
    return grpc.StatusCode.OK, ""


async def test_restricted_calls_over_grpc() -> None:
    denied = grpc.StatusCode.PERMISSION_DENIED, f"This protocol is restricted, expecting header '{HEADER}'"
    async with gateway_under_test(worker_of("a", copy_of("m")), restricted="inference,statistics:infer-key=v") as gateway:
        request, opened = pb.ModelInferRequest(model_name="m"), metadata((HEADER, "v"))
        stub = gateway.stub
        assert await code_of(stub.ModelInfer(request, metadata=metadata())) == denied
        assert await code_of(stub.ModelInfer(request, metadata=metadata((HEADER, "w")))) == denied
        assert (await code_of(stub.ModelInfer(request, metadata=opened)))[0] is grpc.StatusCode.OK
        assert await code_of(stub.ModelStatistics(pb.ModelStatisticsRequest(), metadata=metadata())) == denied
        assert (await code_of(stub.ModelConfig(pb.ModelConfigRequest(name="m"), metadata=metadata())))[0] is grpc.StatusCode.OK
        stream = stub.ModelStreamInfer(metadata=metadata())
        assert (await stream.code(), await stream.details()) == denied
        assert (await stub.ServerLive(pb.ServerLiveRequest())).live


async def test_settings_are_told_and_may_be_set_to_what_they_are() -> None:
    tracing, logging = pb.TraceSettingRequest.SettingValue, pb.LogSettingsRequest.SettingValue
    wishes: list[tuple[Any, grpc.StatusCode, str]] = [
        (pb.TraceSettingRequest(model_name="m"), grpc.StatusCode.OK, ""),
        (pb.TraceSettingRequest(model_name="wanted"), grpc.StatusCode.OK, ""),
        (pb.TraceSettingRequest(model_name="x"), grpc.StatusCode.NOT_FOUND, "unknown model: 'x'"),
        (pb.TraceSettingRequest(settings={"trace_rate": tracing()}), grpc.StatusCode.OK, ""),
        (pb.TraceSettingRequest(settings={"trace_level": tracing(value=["OFF"])}), grpc.StatusCode.OK, ""),
        (
            pb.TraceSettingRequest(settings={"trace_level": tracing(value=["TENSORS"])}),
            grpc.StatusCode.INVALID_ARGUMENT,
            "OTLP",
        ),
        (pb.TraceSettingRequest(settings={"level": tracing()}), grpc.StatusCode.INVALID_ARGUMENT, "'level' is not known"),
        (pb.LogSettingsRequest(settings={"log_info": logging(bool_param=True)}), grpc.StatusCode.OK, ""),
        (pb.LogSettingsRequest(settings={"log_verbose_level": logging(uint32_param=0)}), grpc.StatusCode.OK, ""),
        (pb.LogSettingsRequest(settings={"log_info": logging(uint32_param=1)}), grpc.StatusCode.INVALID_ARGUMENT, "log_info"),
        (pb.LogSettingsRequest(settings={"log_info": logging()}), grpc.StatusCode.INVALID_ARGUMENT, "log_info"),
        (
            pb.LogSettingsRequest(settings={"log": logging(bool_param=True)}),
            grpc.StatusCode.INVALID_ARGUMENT,
            "'log' is not known",
        ),
    ]
    async with gateway_under_test(worker_of("a", copy_of("m"))) as gateway:
        gateway.tell(worker_of("a", copy_of("m")), wishes=["wanted"])
        assert wish_of("wanted").copies  # loaded or not, a model that is wanted has settings
        for request, code, says in wishes:
            call = gateway.stub.TraceSetting if isinstance(request, pb.TraceSettingRequest) else gateway.stub.LogSettings
            found = await code_of(call(request, metadata=metadata()))
            assert (found[0], says in found[1]) == (code, True), (request, found)
