"""Who may do what at a gateway, with a real scheduler behind it: one table for every RPC of jobs, files, batches and places,
and for every key and certificate; what no tenant learns of another; and what nonsense does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
import pytest_asyncio
import structlog.testing
from google.api.httpbody_pb2 import HttpBody
from google.protobuf.message import Message
from penstock.gateway.v1 import gateway_pb2
from penstock.scheduler.v1 import jobs_pb2 as jobs

from gateway.jobs.keepers import Keepers
from gateway.jobs.servicer import SERVICE as JOBS
from gateway.jobs.servicer import JobServicer
from gateway.openai.errors import STATUS_HEADER
from gateway.openai.peers import BatchesClient, FilesClient
from gateway.openai.servicer import SERVICE as OPENAI
from gateway.openai.servicer import OpenAIServicer
from gateway.regions import Regions
from gateway.reservations import SERVICE as RESERVATIONS
from gateway.reservations import ReservationServicer
from runtime.certificates import server_name
from runtime.channel import inner_channel
from runtime.identity import Authority, NodeIdentity, Role
from runtime.notices import NoticeBoard
from runtime.serving import Listen, ServerLimits, serving
from tests.fuzz.choices import Choices
from tests.fuzz.nonsense import spoilt_everywhere
from tests.gateway.fakes import notice_of
from tests.gateway.openai.mesh import AUDITOR, LIMITED, NARROW, SECRET, STRANGER, SmallMesh, small_mesh
from tests.gateway.test_reservations import OneScheduler
from tests.registry.garbage import garbage
from tests.scheduler.mesh import HERE
from tests.scheduler.whole import Whole, called, methods_of, request_class, whole_scheduler

# Y  may: answered, or refused for what is asked and not for who asks        -  PERMISSION_DENIED
# 0  NOT_FOUND: what acme has is not there for this caller                    ?  UNAUTHENTICATED      x  not offered to anybody
RIGHTS = """
                                       acme narrow auditor globex   none wrong node envoy
JobService/SubmitJob                   Y    -      -       0        ?    ?     ?    ?
JobService/GetJob                      Y    Y      Y       0        ?    ?     ?    ?
JobService/WatchJob                    Y    Y      Y       0        ?    ?     ?    ?
JobService/CancelJob                   Y    Y      -       0        ?    ?     ?    ?
JobService/ListJobs                    Y    Y      Y       Y        ?    ?     ?    ?
JobService/ListDeadLetters             Y    Y      Y       Y        ?    ?     ?    ?
JobService/ReplayJobs                  Y    Y      -       Y        ?    ?     ?    ?
JobService/ClaimJobs                   x    x      x       x        x    x     x    x
JobService/ExtendClaims                x    x      x       x        x    x     x    x
JobService/SettleJob                   x    x      x       x        x    x     x    x
ReservationService/CreateReservation   Y    -      -       0        ?    ?     ?    ?
ReservationService/DeleteReservation   Y    Y      -       Y        ?    ?     ?    ?
OpenAIService/CreateChatCompletion     Y    -      -       0        ?    ?     ?    ?
OpenAIService/CreateCompletion         Y    Y      -       0        ?    ?     ?    ?
OpenAIService/CreateEmbeddings         Y    -      -       0        ?    ?     ?    ?
OpenAIService/ListModels               Y    Y      Y       Y        ?    ?     ?    ?
OpenAIService/GetModel                 Y    0      Y       0        ?    ?     ?    ?
OpenAIService/CreateFile               Y    Y      -       Y        ?    ?     ?    ?
OpenAIService/ListFiles                Y    Y      Y       Y        ?    ?     ?    ?
OpenAIService/GetFile                  Y    Y      Y       0        ?    ?     ?    ?
OpenAIService/DeleteFile               Y    Y      -       0        ?    ?     ?    ?
OpenAIService/GetFileContent           Y    Y      Y       0        ?    ?     ?    ?
OpenAIService/CreateBatch              Y    Y      -       0        ?    ?     ?    ?
OpenAIService/ListBatches              Y    Y      Y       Y        ?    ?     ?    ?
OpenAIService/GetBatch                 Y    Y      Y       0        ?    ?     ?    ?
OpenAIService/CancelBatch              Y    Y      -       0        ?    ?     ?    ?
"""
_HEAD, *_ROWS = RIGHTS.strip().splitlines()
TABLE = {row.split()[0]: dict(zip(_HEAD.split(), row.split()[1:], strict=True)) for row in _ROWS}
METHODS = {
    name: method
    for name, method in methods_of(jobs, gateway_pb2).items()
    if method.containing_service.full_name in (JOBS, RESERVATIONS, OPENAI)
}
OFFERED = [method for method, row in TABLE.items() if "x" not in row.values()]
KEYS: Mapping[str, str] = {"acme": SECRET, "narrow": NARROW, "auditor": AUDITOR, "globex": STRANGER}
GONE = LIMITED
"""A key that was revoked."""

HIDDEN = "hush-9f3c"
"""In every payload, and in nothing else."""

_LETTERS = {"PERMISSION_DENIED": "-", "UNAUTHENTICATED": "?", "NOT_FOUND": "0", "UNIMPLEMENTED": "x"}
_STATUSES = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 413: "TOO_LARGE"}
_BUGS = {
    "HTTP 500",
    "HTTP 503",
    "HTTP 504",
    "INTERNAL",
    "UNKNOWN",
    "DATA_LOSS",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "CANCELLED",
}
CHAT = "/v1/chat/completions"
on_the_modules_loop = pytest.mark.asyncio(loop_scope="module")
Fields = Mapping[str, Any]


@dataclass(slots=True)
class Acme:
    """What acme has at the scheduler."""

    job_id: str = ""
    file_id: str = ""
    batch_id: str = ""


@dataclass(frozen=True, slots=True)
class Told:
    """What came of one call, and by which name its code goes, whether in a status or in HTTP's."""

    code: str
    text: str
    messages: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Way:
    """How somebody comes: with the certificate of a node, or to the edge port without; and with a key, or none."""

    key: str = ""
    node: NodeIdentity | None = None
    scheme: str = "Bearer "

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"{self.scheme}{self.key}"),) if self.key else ()


@dataclass(slots=True)
class Edge:
    whole: Whole
    mesh: SmallMesh
    board: NoticeBoard
    ports: tuple[int, ...]
    gateway: NodeIdentity
    stack: AsyncExitStack
    columns: Mapping[str, list[Way]]
    channels: dict[str, grpc.aio.Channel]
    acme: Acme
    logged: list[Any]

    async def call(self, way: Way, method: str, *requests: Message | bytes, timeout_s: float = 20.0) -> Told:
        known, channel = METHODS[method], await self.channel(way.node)
        at_most = 1 if method.endswith("WatchJob") else 100
        answer = await called(channel, known, *requests, metadata=way.metadata, timeout_s=timeout_s, at_most=at_most)
        if answer.error is not None or STATUS_HEADER not in answer.metadata:
            return Told(answer.code.name, "" if answer.error is None else answer.error.message, answer.messages)
        status = int(answer.metadata[STATUS_HEADER])
        error = json.loads(b"".join(message.data for message in answer.messages))["error"]
        return Told(_STATUSES.get(status, f"HTTP {status}"), str(error["message"]))

    async def channel(self, node: NodeIdentity | None) -> grpc.aio.Channel:
        name = "" if node is None else str(node.folder)
        if name not in self.channels:
            at = f"127.0.0.1:{self.ports[0 if node is None else 1]}"
            opened = grpc.aio.insecure_channel(at) if node is None else inner_channel(at, node, Role.GATEWAY)
            self.channels[name] = await self.stack.enter_async_context(opened)
        return self.channels[name]

    async def is_well(self) -> None:
        logged = list(self.logged)
        self.logged.clear()
        for entry in logged:
            assert entry["log_level"] not in ("error", "critical"), entry
            assert HIDDEN not in str(entry)
        assert (await self.call(Way(SECRET), "OpenAIService/ListModels", b"")).code == "OK"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Edge]:
    folder = tmp_path_factory.mktemp("edge")
    with structlog.testing.capture_logs() as logged:
        async with AsyncExitStack() as stack:
            whole = await stack.enter_async_context(whole_scheduler(folder, places=1_000))
            gateway = whole.mesh.node("gateway", Role.GATEWAY)
            mesh = small_mesh(board=(board := _board()))
            ports = await _served(whole, mesh, gateway, stack)
            mesh.revoke(GONE)
            edge = Edge(whole, mesh, board, ports, gateway, stack, _columns(whole), {}, Acme(), logged)
            edge.acme = await _acme_of(edge)
            yield edge


def _board() -> NoticeBoard:
    board = NoticeBoard()
    board.synced = True
    for model in ("sums", "words", "digits", "vectors"):
        board.hear_model(notice_of(model, "acme"))
    return board


async def _served(whole: Whole, mesh: SmallMesh, gateway: NodeIdentity, stack: AsyncExitStack) -> tuple[int, ...]:
    """Both ports of a gateway, as its process opens them."""
    scheduler = await whole.channel(gateway)
    keepers = Keepers([scheduler])
    openai = OpenAIServicer(mesh, FilesClient(keepers), BatchesClient(keepers))
    authority_pem = whole.mesh.authority.certificate_pem
    places = ReservationServicer(
        mesh.callers, mesh.exchanges, mesh.targets, OneScheduler(scheduler), Regions(HERE, tuple), authority_pem
    )
    registers = [openai.register, JobServicer(mesh, keepers).register, places.register]
    listens = [Listen("127.0.0.1", 0), Listen("127.0.0.1", 0, gateway)]
    limits = ServerLimits(message_bytes=20 * 1024 * 1024)
    server = serving(listens, registers, [OPENAI, JOBS, RESERVATIONS], limits=limits, drain_grace_s=0.1)
    return (await stack.enter_async_context(server)).ports


def _columns(whole: Whole) -> Mapping[str, list[Way]]:
    envoy = whole.node(Role.ENVOY)
    return {
        **{name: [Way(key), Way(key, envoy)] for name, key in KEYS.items()},
        "none": [Way()],
        "wrong": [
            Way("sk-pn-0"),
            Way("x" * 5_000),
            Way(GONE),
            Way(SECRET, scheme="Basic "),
            Way(SECRET, scheme="Bearer Bearer "),
        ],
        "node": [Way(node=whole.node(role)) for role in Role if role is not Role.ENVOY],
        "envoy": [Way(node=envoy)],
    }


CHAT_BODY = {"model": "sums", "messages": [{"role": "user", "content": HIDDEN}]}
LINE = json.dumps({"custom_id": "1", "method": "POST", "url": CHAT, "body": CHAT_BODY}).encode() + b"\n"
HTTP = {"path": CHAT, "body": json.dumps(CHAT_BODY).encode()}
Asked = Callable[[Acme], Fields]


def _json(**fields: Any) -> Asked:
    return lambda _: {"content_type": "application/json", "data": json.dumps(fields).encode()}


def _form(content: bytes = LINE, **fields: str) -> HttpBody:
    request = httpx.Request("POST", "http://x", data={"purpose": "batch", **fields}, files={"file": ("in.jsonl", content)})
    return HttpBody(content_type=request.headers["content-type"], data=request.read())


def _batch_of(file_id: str) -> Fields:
    return _json(input_file_id=file_id, endpoint=CHAT, completion_window="24h", metadata={"of": HIDDEN})(Acme())


def _form_fields(_: Acme) -> Fields:
    form = _form()
    return {"content_type": form.content_type, "data": form.data}


PLACE = {"model": "digits", "ttl_ms": 1, "token_sha256": hashlib.sha256(b"t").digest()}
REQUESTS: Mapping[str, Asked] = {
    "JobService/SubmitJob": lambda _: {"call": {"http": HTTP}, "owner": {"tenant": "acme", "key_id": "k1"}},
    "JobService/GetJob": lambda acme: {"job_id": acme.job_id, "tenant": "acme"},
    "JobService/WatchJob": lambda acme: {"job_id": acme.job_id, "tenant": "acme"},
    "JobService/CancelJob": lambda acme: {"job_id": acme.job_id, "tenant": "acme"},
    "JobService/ListJobs": lambda _: {"tenant": "acme"},
    "JobService/ListDeadLetters": lambda _: {"tenant": "acme"},
    "JobService/ReplayJobs": lambda acme: {"tenant": "acme", "job_ids": [acme.job_id]},
    "JobService/ClaimJobs": lambda _: {"max_jobs": 1},
    "JobService/ExtendClaims": lambda _: {"claims": ["0" * 32]},
    "JobService/SettleJob": lambda _: {"claim": "0" * 32},
    "ReservationService/CreateReservation": lambda _: PLACE,
    "ReservationService/DeleteReservation": lambda _: {"reservation_id": f"{'a' * 20}.{'0' * 32}"},
    "OpenAIService/CreateChatCompletion": _json(**CHAT_BODY),
    "OpenAIService/CreateCompletion": _json(model="words", prompt=HIDDEN),
    "OpenAIService/CreateEmbeddings": _json(model="vectors", input=HIDDEN),
    "OpenAIService/ListModels": lambda _: {},
    "OpenAIService/GetModel": lambda _: {"model": "sums"},
    "OpenAIService/CreateFile": _form_fields,
    "OpenAIService/ListFiles": lambda _: {"purpose": "batch"},
    "OpenAIService/GetFile": lambda acme: {"file_id": acme.file_id},
    "OpenAIService/DeleteFile": lambda acme: {"file_id": acme.file_id},
    "OpenAIService/GetFileContent": lambda acme: {"file_id": acme.file_id},
    "OpenAIService/CreateBatch": lambda acme: _batch_of(acme.file_id),
    "OpenAIService/ListBatches": lambda _: {"limit": 10},
    "OpenAIService/GetBatch": lambda acme: {"batch_id": acme.batch_id},
    "OpenAIService/CancelBatch": lambda acme: {"batch_id": acme.batch_id},
}


def request_of(method: str, acme: Acme) -> Any:
    return request_class(METHODS[method])(**REQUESTS[method](acme))


async def _acme_of(edge: Edge) -> Acme:
    """Jobs that are due in a year, so that nothing happens to them; and a file, and a batch of it."""
    own = Way(SECRET)
    later_ms = int(edge.whole.mesh.clock.wall_s() * 1_000) + 3_600_000
    submitted = request_of("JobService/SubmitJob", Acme())
    submitted.due_at_ms = later_ms
    job = (await edge.call(own, "JobService/SubmitJob", submitted)).messages[0].job
    made = await edge.call(own, "OpenAIService/CreateFile", _form())
    file_id = json.loads(made.messages[0].data)["id"]
    batch = HttpBody(**_batch_of(file_id))
    made = await edge.call(own, "OpenAIService/CreateBatch", batch)
    return Acme(job.job_id, file_id, json.loads(made.messages[0].data)["id"])


def test_every_rpc_has_a_row_and_a_request() -> None:
    assert TABLE.keys() == METHODS.keys() == REQUESTS.keys()


@on_the_modules_loop
@pytest.mark.parametrize("method", TABLE)
async def test_who_may(edge: Edge, method: str) -> None:
    wrong = {}
    destroys = method.endswith(("DeleteFile", "CancelJob", "CancelBatch"))
    for column, ways in sorted(edge.columns.items(), key=lambda each: each[0] in ("acme", "narrow")):
        for number, way in enumerate(ways):
            acme = await _acme_of(edge) if destroys and column in ("acme", "narrow") else edge.acme
            told = await edge.call(way, method, request_of(method, acme))
            assert told.code not in _BUGS, (column, told)
            if _LETTERS.get(told.code, "Y") != TABLE[method][column]:
                wrong[f"{column}, way {number}"] = told
    assert wrong == {}
    await edge.is_well()


@on_the_modules_loop
@pytest.mark.parametrize("method", [method for method, row in TABLE.items() if row["globex"] == "0"])
async def test_what_another_tenant_has_is_not_there(edge: Edge, method: str) -> None:
    """In the same words as of what was never there."""
    theirs = edge.acme
    absent = Acme(*(f"{each[:-24]}{'0' * 24}" for each in (theirs.job_id, theirs.file_id, theirs.batch_id)))
    told = []
    for acme in (theirs, absent):
        answer = await edge.call(Way(STRANGER), method, request_of(method, acme))
        shown = answer.text
        for each in (acme.job_id, acme.file_id, acme.batch_id):
            shown = shown.replace(each, "it")
        told.append((answer.code, shown))
    assert told[0] == told[1]
    assert told[0][0] == "NOT_FOUND"
    assert "acme" not in told[0][1]


@on_the_modules_loop
async def test_lists_show_ones_own_alone(edge: Edge) -> None:
    for method in ("JobService/ListJobs", "JobService/ListDeadLetters", "OpenAIService/ListFiles", "OpenAIService/ListBatches"):
        for key, is_there in ((STRANGER, False), (SECRET, "Dead" not in method)):
            told = await edge.call(Way(key), method, request_of(method, edge.acme))
            shown = b"".join(message.SerializeToString() for message in told.messages)
            ids = (edge.acme.job_id, edge.acme.file_id, edge.acme.batch_id)
            assert any(each.encode() in shown for each in ids) is is_there, method


@on_the_modules_loop
async def test_nobody_acts_for_another_tenant_whatever_the_request_says(edge: Edge) -> None:
    submitted = request_of("JobService/SubmitJob", edge.acme)
    submitted.call.http.body = json.dumps({**CHAT_BODY, "model": "free"}).encode()
    edge.board.hear_model(notice_of("free", "nobody", shared_with=["*"]))
    told = await edge.call(Way(STRANGER), "JobService/SubmitJob", submitted)
    assert told.code == "NOT_FOUND", "nobody serves it; else the job would be another tenant's own"
    listed = await edge.call(Way(STRANGER), "JobService/ListJobs", jobs.ListJobsRequest(tenant="acme"))
    assert list(listed.messages[0].jobs) == []
    replayed = await edge.call(Way(STRANGER), "JobService/ReplayJobs", jobs.ReplayJobsRequest(tenant="acme"))
    assert replayed.messages[0].replayed == 0


@on_the_modules_loop
async def test_a_certificate_of_another_mesh_opens_nothing(edge: Edge, tmp_path: Path) -> None:
    other = Authority.open(tmp_path / "another mesh").enrol(tmp_path / "another envoy", Role.ENVOY)
    credentials = grpc.ssl_channel_credentials(edge.gateway.authority_pem, other.tls_key_pem, other.certificate_pem)
    options = [("grpc.ssl_target_name_override", server_name(Role.GATEWAY))]
    address = f"127.0.0.1:{edge.ports[1]}"
    async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
        answer = await called(channel, METHODS["JobService/ListJobs"], metadata=Way(SECRET).metadata, timeout_s=10)
        assert answer.code is grpc.StatusCode.UNAVAILABLE


async def _sent(edge: Edge, method: str, request: Message | bytes, key: str = SECRET) -> Told:
    """Answered in time, by what is the sender's to understand."""
    told = await edge.call(Way(key), method, request)
    assert told.code not in _BUGS, told
    assert told.text or told.code == "OK"
    assert HIDDEN not in told.text
    return told


@on_the_modules_loop
@pytest.mark.parametrize("method", OFFERED)
async def test_each_field_at_its_worst(edge: Edge, method: str) -> None:
    for what, bad in spoilt_everywhere(request_of(method, Acme("job_0", "file-0", "batch_0"))):
        try:
            await _sent(edge, method, bad)
        except AssertionError as failed:
            raise AssertionError(what) from failed
    await edge.is_well()


JSON_VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    10**400,
    1.5,
    "",
    "\0",
    "\ud800",
    "x" * 100_000,
    "/penstock/control/policy/routing",
    [],
    [[]],
    {},
    {"a": {"b": {}}},
    ["x"] * 10_000,
)
JSON_BODIES: Mapping[str, Fields] = {
    "OpenAIService/CreateBatch": {
        "input_file_id": "file-0",
        "endpoint": CHAT,
        "completion_window": "24h",
        "metadata": {"a": "b"},
        "output_expires_after": {"anchor": "created_at", "seconds": 3600},
    },
    "OpenAIService/CreateChatCompletion": {**CHAT_BODY, "max_tokens": 3, "stop": ["a"], "user": "u", "temperature": 1.0},
    "OpenAIService/CreateEmbeddings": {"model": "vectors", "input": ["a"], "dimensions": 3, "encoding_format": "float"},
}
NO_JSON = (
    b"",
    b"{",
    b"[]",
    b"null",
    b'"x"',
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"a": NaN}',
    b"9" * 5_000,
    b"\0" * 9,
)


@on_the_modules_loop
@pytest.mark.parametrize("method", JSON_BODIES)
async def test_json_of_every_kind_in_every_place(edge: Edge, method: str) -> None:
    good = dict(JSON_BODIES[method])
    bodies = [json.dumps({**good, name: value}).encode() for name in (*good, "unknown\ud800") for value in JSON_VALUES]
    bodies += [json.dumps({name: value for name, value in good.items() if name != left_out}).encode() for left_out in good]
    bodies += [json.dumps({**good, "metadata": {"\ud800": "x", "y": value}}).encode() for value in JSON_VALUES]
    for body in (*bodies, *NO_JSON):
        try:
            await _sent(edge, method, HttpBody(content_type="application/json", data=body))
        except AssertionError as failed:
            raise AssertionError(body[:200]) from failed
    await edge.is_well()


@on_the_modules_loop
async def test_a_jobs_body_of_every_kind(edge: Edge) -> None:
    bodies = [json.dumps({**CHAT_BODY, name: value}).encode() for name in CHAT_BODY for value in JSON_VALUES]
    for body in (*bodies, *NO_JSON):
        call = jobs.JobCall(http=jobs.HttpCall(path=CHAT, body=body))
        await _sent(edge, "JobService/SubmitJob", jobs.SubmitJobRequest(call=call))
        await _sent(edge, "JobService/SubmitJob", jobs.SubmitJobRequest(call=jobs.JobCall(infer=body)))
    await edge.is_well()


def _part(disposition: str, content: bytes = b"x", more: str = "") -> bytes:
    return f"--b\r\nContent-Disposition: {disposition}\r\n{more}\r\n".encode("utf-8", "surrogateescape") + content + b"\r\n"


PURPOSE = _part('form-data; name="purpose"', b"batch")
FORMS: Mapping[str, bytes] = {
    "nothing": b"",
    "no end": PURPOSE,
    "an end alone": b"--b--\r\n",
    "another boundary": PURPOSE.replace(b"--b", b"--c"),
    "no disposition": b"--b\r\n\r\nx\r\n--b--\r\n",
    "a name that is no text": _part('form-data; name="\udcff\udcfe"') + b"--b--\r\n",
    "a header of a megabyte": _part(f'form-data; name="{"x" * 1_000_000}"') + b"--b--\r\n",
    "a thousand headers": _part('form-data; name="a"', more="X: y\r\n" * 1_000) + b"--b--\r\n",
    "ten thousand parts": b"".join(_part(f'form-data; name="p{number}"') for number in range(10_000)) + b"--b--\r\n",
    "the same part twice": PURPOSE + PURPOSE + b"--b--\r\n",
    "a filename that climbs": PURPOSE + _part('form-data; name="file"; filename="../../etc/passwd"') + b"--b--\r\n",
    "a filename with a NUL": PURPOSE + _part('form-data; name="file"; filename="a\0b"') + b"--b--\r\n",
    "a filename of nothing": PURPOSE + _part('form-data; name="file"; filename=""') + b"--b--\r\n",
    "a filename of lone surrogates": PURPOSE + _part('form-data; name="file"; filename="\udcff"') + b"--b--\r\n",
    "base64": PURPOSE
    + _part('form-data; name="file"; filename="a"', more="Content-Transfer-Encoding: base64\r\n")
    + b"--b--\r\n",
    "boundaries without end": b"--b\r\n" * 100_000,
    "noise": bytes(range(256)) * 1_000,
    "a part within a part": PURPOSE + _part('form-data; name="file"; filename="a"', b"--b\r\n--b--") + b"--b--\r\n",
}


@on_the_modules_loop
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "kind", ["multipart/form-data; boundary=b", "multipart/form-data", "application/json", "", "x" * 100_000]
)
async def test_multipart_nonsense(edge: Edge, form: str, kind: str) -> None:
    told = await _sent(edge, "OpenAIService/CreateFile", HttpBody(content_type=kind, data=FORMS[form]))
    if kind != "multipart/form-data; boundary=b":
        assert told.code == "INVALID_ARGUMENT"


@on_the_modules_loop
async def test_after_all_forms_it_is_well(edge: Edge) -> None:
    await edge.is_well()


@pytest.mark.parametrize("method", OFFERED)
@on_the_modules_loop
async def test_any_message(edge: Edge, method: str) -> None:
    words = ["sums", "digits", "acme", edge.acme.job_id, edge.acme.file_id, CHAT, "24h", "application/json", "../.."]
    for seed in range(8):
        choices = Choices(hashlib.shake_128(f"{method} {seed}".encode()).digest(400))
        if not method.endswith(("DeleteFile", "CancelJob", "CancelBatch")):
            await _sent(edge, method, garbage(choices, METHODS[method].input_type, words))
    await edge.is_well()


@on_the_modules_loop
@pytest.mark.parametrize("method", OFFERED)
async def test_of_what_nobody_sends_nothing_is_looked_at(edge: Edge, method: str) -> None:
    for seed in range(4):
        request = garbage(Choices(hashlib.shake_128(bytes([seed])).digest(300)), METHODS[method].input_type, ["acme"])
        assert (await edge.call(Way(), method, request)).code == "UNAUTHENTICATED"
