"""The yardstick: a grpc.aio handler that calls ONNX Runtime with one thread, and nothing else.

Speaks just enough KServe for one model: `ModelInfer`, one FP32 input, one output. Every figure of the bar is a multiple of its
CPU per request. It gets uvloop too, so that what is compared is the serving, not the event loop.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import onnxruntime
import uvloop
from inference import grpc_service_pb2, grpc_service_pb2_grpc


class Bare(grpc_service_pb2_grpc.GRPCInferenceServiceServicer):
    """ModelInfer, inline on the event loop."""

    def __init__(self, model: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name
        self._output = self._session.get_outputs()[0].name

    async def ModelInfer(
        self, request: grpc_service_pb2.ModelInferRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> grpc_service_pb2.ModelInferResponse:
        tensor = request.inputs[0]
        array = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(tuple(tensor.shape))
        (result,) = self._session.run([self._output], {self._input: array})
        response = grpc_service_pb2.ModelInferResponse(model_name=request.model_name, id=request.id)
        response.outputs.add(name=self._output, datatype="FP32", shape=result.shape)
        response.raw_output_contents.append(result.tobytes())
        return response


class Empty(grpc_service_pb2_grpc.GRPCInferenceServiceServicer):
    """What grpc.aio itself costs: the same messages, no model."""

    async def ModelInfer(
        self, request: grpc_service_pb2.ModelInferRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> grpc_service_pb2.ModelInferResponse:
        response = grpc_service_pb2.ModelInferResponse(model_name=request.model_name, id=request.id)
        response.outputs.add(name="logits", datatype="FP32", shape=[1, 10])
        response.raw_output_contents.append(bytes(40))
        return response


async def serve(model: Path | None, ready_file: Path) -> None:
    server = grpc.aio.server()
    servicer = Empty() if model is None else Bare(model)  # type: ignore[abstract]
    grpc_service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    draft = ready_file.with_suffix(".draft")
    draft.write_text(json.dumps({"kserve_port": port}))
    draft.rename(ready_file)
    await server.wait_for_termination()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=None, help="an ONNX file; none: an empty handler")
    parser.add_argument("--ready-file", type=Path, required=True)
    arguments = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(arguments.model, arguments.ready_file))


if __name__ == "__main__":
    main()
