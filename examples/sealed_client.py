"""A request that only one worker can read: reserved at the gateway, sealed to the worker's key, answered sealed.

python examples/sealed_client.py examples/digits/7.png
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import grpc.aio
import numpy as np
from inference import grpc_service_pb2
from PIL import Image

from runtime.sealed_client import SealedClient

DATA = Path(".penstock")


async def main() -> None:
    profile = json.loads((DATA / "client.json").read_text())
    authority = (DATA / "ca" / "ca.pem").read_bytes()  # from anywhere but the gateway: it vouches for the worker's key
    picture = Image.open(sys.argv[1] if len(sys.argv) > 1 else "examples/digits/7.png")
    grey = picture.convert("L").resize((8, 8), Image.Resampling.BOX)
    pixels = (np.asarray(grey, dtype=np.float32) / 255).reshape(1, 1, 8, 8)
    request = grpc_service_pb2.ModelInferRequest(model_name="digits", raw_input_contents=[pixels.tobytes()])
    request.inputs.add(name="image", datatype="FP32", shape=pixels.shape)
    async with grpc.aio.insecure_channel(profile["grpc_address"]) as gateway:
        client = SealedClient(gateway, profile["api_key"], authority)
        async with client.reserved("digits", ttl_s=30) as worker:
            response = await worker.infer(request)
            print(f"worker {worker.place.worker_id} at {worker.place.address} kept a place and answered")
    logits = np.frombuffer(response.raw_output_contents[0], np.float32)
    print(f"it is a {int(logits.argmax())}")


if __name__ == "__main__":
    asyncio.run(main())
