"""Ask the model `digits` from Python with stubs generated from the protocol: no package of ours, no Triton client.

pip install grpcio grpcio-tools
python -m grpc_tools.protoc --proto_path=../../../protos --python_out=. --grpc_python_out=. \
    inference/grpc_service.proto inference/model_config.proto
python infer.py 127.0.0.1:8001 $PENSTOCK_API_KEY
"""

from __future__ import annotations

import struct
import sys

import grpc
from inference import grpc_service_pb2, grpc_service_pb2_grpc


def main() -> None:
    address, key = sys.argv[1:3]
    pixels = [1.0 if at % 8 == 4 else 0.0 for at in range(64)]  # a stroke down the middle
    request = grpc_service_pb2.ModelInferRequest(model_name="digits", raw_input_contents=[struct.pack("<64f", *pixels)])
    request.inputs.add(name="image", datatype="FP32", shape=[1, 1, 8, 8])
    with grpc.insecure_channel(address) as channel:
        stub = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)
        try:
            answer = stub.ModelInfer(request, metadata=(("authorization", f"Bearer {key}"),), timeout=10)
        except grpc.RpcError as error:
            sys.exit(f"{error.code().name}: {error.details()}")
    scores = struct.unpack("<10f", answer.raw_output_contents[0])
    print(f"it is a {scores.index(max(scores))}, says {answer.model_name} version {answer.model_version}")


if __name__ == "__main__":
    main()
