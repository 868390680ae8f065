"""The least a Python gateway can do: a grpc.aio server that hands each request to one worker and its answer back, as bytes.

No key, no choice, no deadline: what is left is the price of a hop in grpc.aio.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import uvloop

METHOD = "/inference.GRPCInferenceService/ModelInfer"


async def serve(worker: str, ready_file: Path) -> None:
    async with grpc.aio.insecure_channel(worker) as channel:
        infer: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD, None, None)

        async def pass_on(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
            return await infer(request)

        server = grpc.aio.server()
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {"ModelInfer": grpc.unary_unary_rpc_method_handler(pass_on)}
        server.add_registered_method_handlers("inference.GRPCInferenceService", handlers)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        draft = ready_file.with_suffix(".draft")
        draft.write_text(json.dumps({"kserve_port": port}))
        draft.rename(ready_file)
        await server.wait_for_termination()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", required=True, help="host:port of its KServe service")
    parser.add_argument("--ready-file", type=Path, required=True)
    arguments = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(arguments.worker, arguments.ready_file))


if __name__ == "__main__":
    main()
