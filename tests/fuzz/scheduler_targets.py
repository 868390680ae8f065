"""Fuzz targets of what schedulers take from gateways, operators, Envoy, tenants' files, and etcd. As `targets.py` has them."""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from inference import grpc_service_pb2 as kserve
from penstock.scheduler.v1 import jobs_pb2, scheduler_pb2
from xds import external_processor_pb2 as ext

from placement.copies.demand import Demand, folded
from placement.rules import DEFAULT_ROUTE, RoutingPolicy, route_for
from placement.types import Copy, CopyState, Worker
from runtime.clock import SystemClock
from runtime.errors import InvalidArgument
from runtime.identity import Authority
from runtime.ids import Digest, ModelName, ModelVersion, Region, TenantId, WorkerId, placement_key
from runtime.notices import NoticeBoard
from runtime.records import RecordVerifier
from scheduler.codec import placement_of
from scheduler.demand.codec import report_of
from scheduler.demand.intake import DemandIntake
from scheduler.fleet import Fleet
from scheduler.jobs.batches.lines import LineCutter
from scheduler.jobs.batches.policy import read_line
from scheduler.jobs.batches.types import Fault, Line
from scheduler.jobs.codec import outcome_of, submission_of
from scheduler.jobs.errors import JobRefused
from scheduler.jobs.submission import checked as checked_job
from scheduler.outlook import Outlook
from scheduler.picker.picking import Picker
from scheduler.picker.reading import MODEL_HEADER, Unreadable, asked_by_grpc
from scheduler.picker.servicer import _Passage
from scheduler.placements import checked as checked_wish
from scheduler.presence import PresenceReader
from scheduler.routing.codec import policy_bytes, policy_from, policy_of
from tests.fuzz.choices import Choices
from tests.fuzz.messages import infer_request, spoilt
from tests.registry.garbage import garbage

CHAT = "/v1/chat/completions"
_HEADERS = (":path", CHAT, ":status", "503", "9" * 5_000, "x-gateway-model-name")
WORDS = ("digits", "acme", "here", "1", "d" * 64, "affinity", "none", "gpu=1", "../..", "*")
_KEY = re.compile(r"/penstock/control/[a-z0-9-]{1,32}/placements/[A-Za-z0-9][A-Za-z0-9._-]{0,127}/[1-9][0-9]{0,17}")


def fuzz_wish(data: bytes) -> None:
    """A placement that is taken lies under its own key, and under no other's."""
    message: Any = garbage(Choices(data), scheduler_pb2.Placement.DESCRIPTOR, WORDS)
    with suppress(InvalidArgument):
        wish = checked_wish(placement_of(message))
        assert _KEY.fullmatch(placement_key(wish.region, wish.model, wish.version))


def fuzz_policy(data: bytes) -> None:
    """A policy that is taken can be kept, read back the same, and followed."""
    choices = Choices(data)
    message: Any = garbage(choices, scheduler_pb2.RoutingPolicy.DESCRIPTOR, WORDS)
    with suppress(InvalidArgument):
        policy = policy_of(message)
        assert policy_from(policy_bytes(policy)) == policy
        route_for(policy, TenantId(choices.text()), ModelName(choices.text()), Region("here"))
    with suppress(InvalidArgument):
        assert isinstance(policy_from(data), RoutingPolicy)


def fuzz_report(data: bytes) -> None:
    """What a gateway reports adds up to numbers that can be reckoned with."""
    choices, clock = Choices(data), SystemClock()
    intake = DemandIntake(clock)
    with intake.listening() as gateway:
        while choices.left:
            message: Any = garbage(choices, scheduler_pb2.ReportDemandRequest.DESCRIPTOR, WORDS)
            with suppress(InvalidArgument):
                intake.hear(gateway, report_of(message))
    demand = folded([gateway.share], Demand(), clock.monotonic_s())
    for rate in demand.rates.values():
        assert all(math.isfinite(each) and each >= 0 for each in (rate.requests_per_s, rate.concurrency, rate.missed_per_s))
    for load in intake.loads().values():
        assert math.isfinite(load.latency_ewma_ms)


def fuzz_job(data: bytes) -> None:
    """A submission is refused, or can be kept; so is what a gateway says of how it ended."""
    choices = Choices(data)
    message: Any = garbage(choices, jobs_pb2.SubmitJobRequest.DESCRIPTOR, (*WORDS, CHAT, '{"model": "sums"}'))
    with suppress(JobRefused):
        job = checked_job(submission_of(message), 1)
        assert job.model.isprintable()
    settled: Any = garbage(choices, jobs_pb2.SettleJobRequest.DESCRIPTOR, WORDS)
    with suppress(JobRefused):
        outcome_of(settled)


def fuzz_batch_lines(data: bytes) -> None:
    """The same lines, however the file was cut; each a request or a fault that does not show what it holds."""
    choices = Choices(data)
    cuts = [choices.below(8) for _ in range(choices.below(40))]
    good = json.dumps({"custom_id": "1", "method": "POST", "url": CHAT, "body": {"model": "m"}}).encode()
    file = b"\n".join(spoilt(choices, good) for _ in range(choices.below(4))) + choices.rest()
    cutter, at = LineCutter(), 0
    lines = []
    for cut in cuts:
        lines += list(cutter.cut(file[at : at + cut]))
        at += cut
    lines += [*cutter.cut(file[at:]), *cutter.end()]
    whole = LineCutter()
    assert lines == [*whole.cut(file), *whole.end()]
    for line in lines:
        read = read_line(line.number, line.raw, CHAT)
        assert isinstance(read, Line | Fault)


def fuzz_picker_head(data: bytes) -> None:
    """The names that are read from the beginning of a gRPC message are those that a parser reads."""
    choices = Choices(data)
    payload = data if choices.flag(4) else spoilt(choices, infer_request(choices).SerializeToString())
    body = b"\0" + len(payload).to_bytes(4, "big") + payload
    with suppress(Unreadable):
        asked = asked_by_grpc(body, "", ended=True)
        with suppress(DecodeError):
            parsed = kserve.ModelInferRequest.FromString(payload)
            assert asked is not None
            assert asked.model in (parsed.model_name, "") or payload.count(b"\x0a") > 1


def fuzz_passage(data: bytes) -> None:
    """What Envoy tells of a request, in whatever order: answers, and everything given back at the end."""
    choices, passing = Choices(data[:200]), Passing()
    while choices.left and not passing.passage.refused:
        message: Any = garbage(choices, ext.ProcessingRequest.DESCRIPTOR, (*WORDS, *_HEADERS))
        if choices.flag():
            headers = message.request_headers.headers.headers
            headers.add(key=MODEL_HEADER, raw_value=choices.one_of((b"digits", b"digits", b"nothing", b"\xff")))
        passing.passage.answer(message)
    passing.passage.close()
    assert passing.in_flight == 0


class Passing:
    """One request that passes an Envoy, with one worker to pick."""

    def __init__(self) -> None:
        self._outlook = Outlook(Fleet(PresenceReader(_believes_nobody())), NoticeBoard(), SystemClock(), dict)
        copy = Copy(ModelName("digits"), ModelVersion("1"), Digest("d" * 64), CopyState.READY)
        self._who, address = WorkerId("w"), "127.0.0.1:1"
        worker = Worker(self._who, Region("here"), address, copies=(copy,), max_in_flight=8, kserve_address=address)
        self._outlook.view = self._outlook.view.with_worker(worker)
        self._outlook.state.adopt(self._outlook.view)
        picker = Picker(self._outlook, Region("here"), lambda *_: DEFAULT_ROUTE)
        self.passage = _Passage(picker, SystemClock(), 7)

    @property
    def in_flight(self) -> int:
        """What is reserved at the worker."""
        return self._outlook.state.own_in_flight(self._outlook.view, self._who)


@cache
def _believes_nobody() -> RecordVerifier:
    with tempfile.TemporaryDirectory(prefix="penstock-fuzz-") as name:
        return RecordVerifier(Authority.open(Path(name)).certificate_pem)


SCHEDULER_TARGETS: dict[str, Callable[[bytes], None]] = {
    "wish": fuzz_wish,
    "policy": fuzz_policy,
    "report": fuzz_report,
    "job": fuzz_job,
    "batch_lines": fuzz_batch_lines,
    "picker_head": fuzz_picker_head,
    "passage": fuzz_passage,
}
