"""Manifests and generation messages, to and from the worker's own nouns. Tensors have a codec of their own, `kserve.py`."""

from __future__ import annotations

from google.protobuf.message import DecodeError
from penstock.registry.v1 import models_pb2
from penstock.worker.v1 import worker_pb2

from runtime.errors import InvalidArgument
from runtime.ids import Digest, ModelName, ModelVersion
from worker.datatypes import DATATYPES
from worker.engine import Finish, Message, ModelRefused, Piece, Sampling, TextRequest
from worker.types import BatchingSpec, ModelSpec, Task, TensorSpec

_FINISHES = {
    None: worker_pb2.FINISH_REASON_UNSPECIFIED,
    Finish.STOP: worker_pb2.FINISH_REASON_STOP,
    Finish.LENGTH: worker_pb2.FINISH_REASON_LENGTH,
}
_TEXT_ENGINES = ("llm",)


def spec_of(manifest: models_pb2.Manifest, digest: Digest) -> ModelSpec:
    """The model as the worker needs it. Raises ModelRefused for a manifest that describes none."""
    where = f"the manifest of {manifest.model!r} version {manifest.version!r}"
    if not manifest.model or not manifest.version.isdecimal() or int(manifest.version) < 1:
        raise ModelRefused(f"{where} needs a name and a positive decimal version")
    tasks = {task.value: task for task in Task}
    if manifest.task not in tasks:
        raise ModelRefused(f"{where} has task {manifest.task!r}; known: {', '.join(sorted(tasks))}")
    if not manifest.outputs:
        raise ModelRefused(f"{where} describes no outputs")
    return ModelSpec(
        model=ModelName(manifest.model),
        version=ModelVersion(manifest.version),
        digest=digest,
        engine=manifest.engine,
        task=tasks[manifest.task],
        max_batch_size=manifest.max_batch_size,
        inputs=tuple(_tensor(where, tensor) for tensor in manifest.inputs),
        outputs=tuple(_tensor(where, tensor) for tensor in manifest.outputs),
        batching=BatchingSpec(
            max_queue_delay_us=manifest.batching.max_queue_delay_us,
            preferred_batch_sizes=tuple(manifest.batching.preferred_batch_sizes),
            max_queue_size=manifest.batching.max_queue_size,
        ),
        parameters=dict(manifest.parameters),
        decoupled=manifest.decoupled or manifest.engine in _TEXT_ENGINES,
    )


def _tensor(where: str, tensor: models_pb2.TensorSpec) -> TensorSpec:
    if tensor.datatype not in DATATYPES:
        raise ModelRefused(
            f"{where} gives tensor {tensor.name!r} datatype {tensor.datatype!r}; known: {', '.join(sorted(DATATYPES))}"
        )
    if any(dimension < -1 for dimension in tensor.shape):
        raise ModelRefused(
            f"{where} gives tensor {tensor.name!r} shape {list(tensor.shape)}; -1 is the only negative dimension"
        )
    return TensorSpec(tensor.name, tensor.datatype, tuple(tensor.shape), tuple(tensor.labels), tensor.optional)


def parse_generate(payload: bytes) -> tuple[str, TextRequest]:
    """The model asked for and the request. Raises InvalidArgument."""
    try:
        message = worker_pb2.GenerateRequest.FromString(payload)
    except DecodeError as error:
        raise InvalidArgument(f"the {len(payload)} bytes received are no penstock.worker.v1.GenerateRequest") from error
    kind = message.WhichOneof("input")
    if kind is None:
        raise InvalidArgument("the request has neither a prompt nor a chat; set one of them")
    prompt: str | tuple[Message, ...] = message.prompt
    if kind == "chat":
        prompt = tuple(Message(turn.role, turn.content) for turn in message.chat.messages)
    sampling = message.sampling
    return message.model, TextRequest(
        prompt=prompt,
        sampling=Sampling(
            temperature=sampling.temperature if sampling.HasField("temperature") else None,
            top_p=sampling.top_p if sampling.HasField("top_p") else None,
            top_k=sampling.top_k if sampling.HasField("top_k") else None,
            seed=sampling.seed if sampling.HasField("seed") else None,
        ),
        max_tokens=message.max_tokens,
        stop=tuple(message.stop),
        resume_token_ids=tuple(message.resume_token_ids),
    )


def generate_response(piece: Piece) -> bytes:
    """A serialised GenerateResponse; usage only where the generation ends."""
    response = worker_pb2.GenerateResponse(text=piece.text, token_ids=piece.token_ids, finish_reason=_FINISHES[piece.finish])
    if piece.finish is not None:
        response.usage.prompt_tokens = piece.prompt_tokens
        response.usage.completion_tokens = piece.completion_tokens
    return response.SerializeToString()
