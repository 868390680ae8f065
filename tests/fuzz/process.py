"""A worker's inside, as real as in its process, opened once and kept: what the targets send their inputs to.

Owns the event loop of the process and the open models. Never listens anywhere.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import uvloop
from inference import grpc_service_pb2 as pb

from runtime.errors import Code, PenstockError
from runtime.ids import WorkerId
from tests.fuzz.messages import DATATYPE_NAMES, model_of
from tests.worker.markov import language_spec, markov
from tests.worker.onnx_models import identity, spec
from worker.copies import open_model
from worker.execute.execution import Execution
from worker.execute.execution_stream import StreamLimits
from worker.inference import TableInference
from worker.models import ModelTable
from worker.types import CallContext, TensorSpec

T = TypeVar("T")

BUGS = frozenset({Code.INTERNAL, Code.UNKNOWN, Code.DATA_LOSS})
"""Codes that no request may bring about."""

LIMITS = StreamLimits(payload_bytes=4096, upload_bytes=6000, calls=3)
"""Small, so that inputs of a few hundred bytes come to them."""


@dataclass(frozen=True, slots=True)
class Worker:
    runner: asyncio.Runner
    table: ModelTable
    inference: TableInference
    execution: Execution

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(main)

    async def check_unharmed(self) -> None:
        """Nothing of what came before is still held, and a good request is answered."""
        assert self.inference.load.in_flight == 0
        assert self.inference.load.queued_rows == 0
        assert self.execution.open_calls == 0
        values = np.array([[1.5, -2.5]], np.float32)
        answer = pb.ModelInferResponse.FromString(await self.inference.infer("", "", good_request(values), CallContext()))
        assert answer.raw_output_contents[0] == values.tobytes()


def good_request(values: Any) -> bytes:
    """Asks for `values` (float32 [rows, 2]) back."""
    request = pb.ModelInferRequest(model_name=model_of("FP32"))
    request.inputs.add(name="x", datatype="FP32", shape=values.shape)
    request.raw_input_contents.append(values.tobytes())
    return request.SerializeToString()


@cache
def worker() -> Worker:
    """The one worker of this process; it ends with it."""
    runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    return runner.run(_opened(runner))


def close_worker() -> None:
    """End the worker, if there is one; asked for again, there will be another."""
    if worker.cache_info().currsize:
        ended = worker()
        worker.cache_clear()
        for loaded in ended.table:
            loaded.close()
        ended.runner.close()


async def opened_table(folder: Path) -> ModelTable:
    """An echo of each datatype, one without a batch dimension, and a model that writes the alphabet."""
    table = ModelTable()
    for datatype in DATATYPE_NAMES:
        name = model_of(datatype)
        echo = spec(name, inputs=[TensorSpec("x", datatype, (2,))], outputs=[TensorSpec("y", datatype, (2,))])
        table.add(await open_model(echo, identity(folder / name, datatype)))
    x, y = TensorSpec("x", "FP32", (-1, -1)), TensorSpec("y", "FP32", (-1, -1))
    unbatched = spec("unbatched", max_batch_size=0, inputs=[x], outputs=[y])
    table.add(await open_model(unbatched, identity(folder / "unbatched", "FP32", ("a", "b"))))
    with suppress(PenstockError):  # where ONNX Runtime GenAI is missing, requests for text are for a model that is not here
        table.add(await open_model(language_spec(), markov(folder / "alphabet")))
    return table


async def _opened(runner: asyncio.Runner) -> Worker:
    with tempfile.TemporaryDirectory(prefix="penstock-fuzz-") as folder:
        table = await opened_table(Path(folder))
    inference = TableInference(table)
    execution = Execution(inference, WorkerId("w"), asyncio.Event(), limits=LIMITS, authorise=lambda *_: None)
    return Worker(runner, table, inference, execution)
