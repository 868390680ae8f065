"""One function for each thing that takes bytes from outside: it raises where those bytes bring about what none may.

Called by hypothesis (`test_targets.py`) and by a coverage-guided fuzzer (`run_atheris.py`). Each judges for itself: errors have
to be ours and the sender's, answers right, and the worker as good as before.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import aclosing, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import nacl.signing
from google.protobuf.message import DecodeError
from inference import grpc_service_pb2 as pb
from penstock.registry.v1 import models_pb2
from penstock.worker.v1 import presence_pb2, worker_pb2

from gateway.wire import RequestMalformed, head_of
from runtime.errors import InvalidArgument, PenstockError
from runtime.gathering import AtOnce
from runtime.identity import Authority, NodeIdentity, Role
from runtime.ids import Digest, Region, WorkerId, presence_key
from runtime.keyvalue import KeyValue
from runtime.manifests import digest_of, sign_manifest
from runtime.model_folder import DESCRIPTION, complete_manifest, hash_file, read_model_folder
from runtime.records import RecordVerifier, sign_record
from scheduler.presence import PresenceReader, PresenceRefused
from tests.fuzz.choices import Choices
from tests.fuzz.messages import execute_request, generate_request, infer_request, manifest, presence, spoilt
from tests.fuzz.model_toml import model_toml
from tests.fuzz.process import BUGS, LIMITS, Worker, worker
from tests.fuzz.scheduler_targets import SCHEDULER_TARGETS
from worker.datatypes import DATATYPES
from worker.engines.upstream.sse import EventReader
from worker.execute.execution_stream import ExecuteStream
from worker.files.manifest import open_manifest
from worker.kserve.codec import RequestCodec
from worker.life.orders import OrdersRefused, parse_orders
from worker.spec import spec_of
from worker.tensors import from_raw, to_raw
from worker.types import CallContext

_SIGNER = nacl.signing.SigningKey(b"f" * 32)
_NOW_S = 60.0
_END_S = 20.0
"""A stream that has not ended by then never will."""


def fuzz_infer(data: bytes) -> None:
    """A ModelInferRequest: its echo, or a refusal that is the sender's fault."""
    choices, here = Choices(data), worker()
    request = infer_request(choices)
    payload = spoilt(choices, request.SerializeToString())
    here.run(_unharmed(here, _infer(here, payload, CallContext(priority=choices.whole(bits=32)))))


def fuzz_stream_infer(data: bytes) -> None:
    """A ModelInferRequest of a stream: responses of which exactly the last is final, or a refusal."""
    choices, here = Choices(data), worker()
    payload = spoilt(choices, infer_request(choices).SerializeToString())
    answers = here.inference.stream_infer("", "", payload, CallContext())
    here.run(_unharmed(here, _stream(answers, _is_final_response, choices.below(40))))


def fuzz_generate(data: bytes) -> None:
    """A GenerateRequest: pieces of which exactly the last has a finish, or a refusal."""
    choices, here = Choices(data), worker()
    payload = spoilt(choices, generate_request(choices).SerializeToString())
    answers = here.inference.generate("", "", payload, CallContext())
    here.run(_unharmed(here, _stream(answers, _is_last_piece, choices.below(40))))


def fuzz_execute(data: bytes) -> None:
    """The messages of one Execute stream: each call ends at most once, and nothing is left when the stream is over."""
    here = worker()
    here.run(_unharmed(here, _execute(here, Choices(data))))


def fuzz_model_toml(data: bytes) -> None:
    """A `model.toml`: a manifest that describes a model, or a refusal."""
    choices = Choices(data)
    content = choices.rest() if choices.flag(4) else spoilt(choices, model_toml(choices).encode())
    with tempfile.TemporaryDirectory(prefix="penstock-fuzz-") as name:
        folder = Path(name)
        (folder / DESCRIPTION).write_bytes(content)
        (folder / "model.onnx").write_bytes(b"onnx")
        with _only_refusals():
            described = read_model_folder(folder)
            completed = complete_manifest(described, "1", {file.path: hash_file(file.file) for file in described.files})
            spec_of(models_pb2.Manifest.FromString(completed.SerializeToString()), Digest("0" * 64))


def fuzz_manifest(data: bytes) -> None:
    """A manifest that a trusted signer signed: a spec that requests can be decoded for, or a refusal."""
    choices = Choices(data)
    signed = sign_manifest(_SIGNER, manifest(choices))
    if choices.flag(4):
        raw = choices.blob(200)
        signed.manifest, signed.signature = raw, _SIGNER.sign(b"penstock-manifest-v1\n" + raw).signature
    payload = spoilt(choices, models_pb2.GetVersionResponse(manifest=signed).SerializeToString())
    with _only_refusals():
        description = open_manifest(payload, digest_of(signed), {bytes(_SIGNER.verify_key)}, now_ms=0)
        assert all(not Path(file.path).is_absolute() and ".." not in Path(file.path).parts for file in description.files)
        RequestCodec(description.spec).decode(infer_request(choices))


def fuzz_presence(data: bytes) -> None:
    """A record under a worker's presence key: a member of the fleet, or a doubt."""
    choices, (identity, verifier) = Choices(data), _enrolled()
    payload = spoilt(choices, presence(choices, identity.node_id).SerializeToString())
    record = presence_pb2.SignedRecord.FromString(sign_record(identity, payload))
    for field in ("signature", "ed25519_public_key", "certificate", "payload"):
        if choices.flag(12):
            setattr(record, field, spoilt(choices, getattr(record, field)))
    item = KeyValue(
        presence_key(Region("here"), WorkerId(identity.node_id)), spoilt(choices, record.SerializeToString()), 1, 1, 1
    )
    reader = PresenceReader(verifier)
    for live in (True, False):
        with suppress(PresenceRefused):
            member = reader.read(item, now_wall_s=_NOW_S * choices.below(3), live=live)
            assert member.worker.worker_id == WorkerId(identity.node_id)


def fuzz_orders(data: bytes) -> None:
    """What lies under a worker's assignment key."""
    with suppress(OrdersRefused):
        orders = parse_orders(data)
        assert len({order.key for order in orders}) == len(orders)


def fuzz_events(data: bytes) -> None:
    """A stream of server-sent events: the same events, however it was cut on the way."""
    choices = Choices(data)
    cuts, stream = [choices.below(8) for _ in range(choices.below(40))], choices.rest()
    reader, events, at = EventReader(1 << 20), list[bytes](), 0
    for cut in cuts:
        events += reader.feed(stream[at : at + cut])
        at += cut
    events += reader.feed(stream[at:])
    assert events == EventReader(1 << 20).feed(stream)


def fuzz_head(data: bytes) -> None:
    """What a gateway reads of a request is what a parser reads: the same names, or both refuse."""
    choices = Choices(data)
    payload = data if choices.flag(4) else spoilt(choices, infer_request(choices).SerializeToString())
    try:
        parsed: pb.ModelInferRequest | None = pb.ModelInferRequest.FromString(payload)
    except DecodeError:
        parsed = None
    try:
        head = head_of(payload)
    except RequestMalformed:
        assert parsed is None or len(payload) > 16_000, "the gateway refuses what the worker would take"
        return
    if parsed is not None:
        assert (head.model, head.version, head.request_id) == (parsed.model_name, parsed.model_version, parsed.id)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "infer": fuzz_infer,
    "stream_infer": fuzz_stream_infer,
    "generate": fuzz_generate,
    "execute": fuzz_execute,
    "model_toml": fuzz_model_toml,
    "manifest": fuzz_manifest,
    "presence": fuzz_presence,
    "orders": fuzz_orders,
    "head": fuzz_head,
    "events": fuzz_events,
    **SCHEDULER_TARGETS,
}


@contextmanager
def _only_refusals() -> Iterator[None]:
    """Lets errors of ours pass that are the sender's fault."""
    try:
        yield
    except PenstockError as error:
        if error.code in BUGS:
            raise


async def _unharmed(here: Worker, work: Coroutine[Any, Any, None]) -> None:
    await work
    await here.check_unharmed()


async def _infer(here: Worker, payload: bytes, call: CallContext) -> None:
    with _only_refusals():
        answer = pb.ModelInferResponse.FromString(await here.inference.infer("", "", payload, call))
        _check_echo(pb.ModelInferRequest.FromString(payload), answer)


def _check_echo(request: pb.ModelInferRequest, answer: pb.ModelInferResponse) -> None:
    assert (answer.id, answer.model_name, answer.model_version) == (request.id, request.model_name, "1")
    assert len(answer.outputs) == len(answer.raw_output_contents)
    if not request.raw_input_contents or any("classification" in output.parameters for output in request.outputs):
        return
    sent, back = request.inputs[0], answer.outputs[0]
    assert (list(back.shape), back.datatype) == (list(sent.shape), sent.datatype)
    echo = to_raw(from_raw(request.raw_input_contents[0], DATATYPES[sent.datatype], sent.shape, "x"))
    assert answer.raw_output_contents[0] == echo


async def _stream(answers: AsyncGenerator[bytes, None], is_final: Callable[[bytes], bool], enough: int) -> None:
    """Read it to its end, or leave it after some."""
    finals: list[bool] = []
    with _only_refusals():
        async with aclosing(answers):
            async for answer in answers:
                finals.append(is_final(answer))
                if len(finals) > enough:
                    assert not any(finals[:-1])
                    return
        assert finals.count(True) == 1
        assert finals[-1]


def _is_final_response(answer: bytes) -> bool:
    parameters = pb.ModelStreamInferResponse.FromString(answer).infer_response.parameters
    return parameters["triton_final_response"].bool_param


def _is_last_piece(answer: bytes) -> bool:
    return worker_pb2.GenerateResponse.FromString(answer).finish_reason != worker_pb2.FINISH_REASON_UNSPECIFIED


async def _execute(here: Worker, choices: Choices) -> None:
    """Write what the choices say, with pauses; then cancel all and end, or go away, or have the worker leave."""
    inbox: asyncio.Queue[bytes | None] = asyncio.Queue()
    opened: Counter[int] = Counter()
    frames: list[worker_pb2.ResponseFrame] = []

    async def write(message: bytes) -> None:
        frames.extend(worker_pb2.ExecuteResponse.FromString(message).frames)

    stream = ExecuteStream(here.inference, here.execution, LIMITS, write, lambda: b"", AtOnce())
    running = asyncio.create_task(stream.run(inbox.get))
    while choices.left:
        message = spoilt(choices, execute_request(choices).SerializeToString())
        with suppress(DecodeError):
            frames_sent = worker_pb2.ExecuteRequest.FromString(message).frames
            opened.update(frame.call_id for frame in frames_sent if frame.WhichOneof("frame") == "open")
        inbox.put_nowait(message)
        for _ in range(choices.one_of((0, 1, 1, 10, 200))):
            await asyncio.sleep(0)
    ending = choices.below(3)
    if ending == 0:
        cancels = worker_pb2.ExecuteRequest()
        for call_id in opened:
            cancels.frames.add(call_id=call_id).cancel.SetInParent()
        inbox.put_nowait(cancels.SerializeToString())
        inbox.put_nowait(None)
    elif ending == 1:
        inbox.put_nowait(None)
        await asyncio.sleep(0)
        running.cancel()
    else:
        inbox.put_nowait(None)
        while not inbox.empty() and not running.done():
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        stream.cut_off()
    async with asyncio.timeout(_END_S):
        with suppress(InvalidArgument, asyncio.CancelledError):
            await running
    _check_frames(opened, frames)


def _check_frames(opened: Counter[int], frames: list[worker_pb2.ResponseFrame]) -> None:
    ended: Counter[int] = Counter()
    for frame in frames:
        assert frame.failure.code not in BUGS, frame
        ended[frame.call_id] += frame.end
    assert ended.keys() <= opened.keys()
    assert all(ended[call_id] <= opened[call_id] for call_id in ended)


@cache
def _enrolled() -> tuple[NodeIdentity, RecordVerifier]:
    with tempfile.TemporaryDirectory(prefix="penstock-fuzz-") as name:
        authority = Authority.open(Path(name))
        return authority.enrol(Path(name) / "worker", Role.WORKER), RecordVerifier(authority.certificate_pem)
