"""A small language model whose tokens are bytes, open in this process, and links to it that break where a test says so."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path

from inference import grpc_service_pb2
from penstock.worker.v1 import worker_pb2

from gateway.links.types import CallContext, LinkLost, Method
from runtime.errors import PenstockError
from tests.gateway.fakes import FakeAnswers, FakeLink
from tests.worker.markov import language_spec
from tests.worker.tiny_llama import tiny_llama
from worker.copies import TextCopy, open_model
from worker.inference import TableInference
from worker.models import ModelTable
from worker.types import CallContext as WorkerCall
from worker.types import Kind

MODEL = "alphabet"


async def opened_model(folder: Path, **parameters: str) -> tuple[TableInference, TextCopy]:
    """A worker's inference with that model alone. Close the model."""
    model = await open_model(language_spec(parameters=parameters), folder)
    assert model.kind is Kind.TEXT
    table = ModelTable()
    table.add(model)
    return TableInference(table), model


def model_folder(folder: Path) -> Path:
    return tiny_llama(folder, seed=7)


def generate_request(prompt: str, *, chat: bool = False, **fields: object) -> bytes:
    """`fields`: of GenerateRequest."""
    request = worker_pb2.GenerateRequest(model=MODEL, **fields)  # type: ignore[arg-type]
    if chat:
        request.chat.messages.add(role="user", content=prompt)
    else:
        request.prompt = prompt
    return request.SerializeToString()


def infer_request(prompt: str, **parameters: float | str) -> bytes:
    request = grpc_service_pb2.ModelInferRequest(model_name=MODEL, id="1")
    request.inputs.add(name="text_input", datatype="BYTES", shape=[1]).contents.bytes_contents.append(prompt.encode())
    for name, value in parameters.items():
        kind = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}[type(value)]
        setattr(request.parameters[name], kind, value)
    return request.SerializeToString()


@dataclass
class BreakingLink(FakeLink):
    """Generates in earnest. Each call that it serves is lost after as many answers as the next of `cuts` says."""

    inference: TableInference | None = None
    cuts: list[int] = field(default_factory=list)
    failure: PenstockError | None = None
    """How; else with the link."""
    payloads: list[bytes] = field(default_factory=list)

    def stream(self, method: Method, model: str, version: str, payload: bytes, context: CallContext) -> FakeAnswers:
        self.calls += 1
        self.payloads.append(payload)
        self.versions.append(version)
        return FakeAnswers(self._made(method, model, version, payload))

    async def _made(self, method: Method, model: str, version: str, payload: bytes) -> AsyncGenerator[bytes, None]:
        assert self.inference is not None
        generating = self.inference.generate if method is Method.GENERATE else self.inference.stream_infer
        cut, given = (self.cuts.pop(0) if self.cuts else None), 0
        made = generating(model, version, payload, WorkerCall())
        self.in_flight += 1
        try:
            async for answer in made:
                if given == cut:
                    raise self._lost(given)
                given += 1
                yield answer
            if given == cut:
                raise self._lost(given)
        finally:
            self.in_flight -= 1
            await made.aclose()

    def _lost(self, given: int) -> PenstockError:
        return self.failure or LinkLost(f"the worker was killed after {given} answers", started=given > 0)
