// A client of inference.GRPCInferenceService on @grpc/grpc-js, made from generated messages: every RPC of the service by its name.

import { Metadata, credentials, makeClientConstructor } from "@grpc/grpc-js";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { GRPCInferenceService, ModelInferRequestSchema } from "./gen/inference/grpc_service_pb.js";

function definition(service) {
  const entries = service.methods.map((method) => [
    method.localName,
    {
      path: `/${service.typeName}/${method.name}`,
      requestStream: method.methodKind === "client_streaming" || method.methodKind === "bidi_streaming",
      responseStream: method.methodKind === "server_streaming" || method.methodKind === "bidi_streaming",
      requestSerialize: (message) => Buffer.from(toBinary(method.input, message)),
      requestDeserialize: (bytes) => fromBinary(method.input, bytes),
      responseSerialize: (message) => Buffer.from(toBinary(method.output, message)),
      responseDeserialize: (bytes) => fromBinary(method.output, bytes),
    },
  ]);
  return Object.fromEntries(entries);
}

const Client = makeClientConstructor(definition(GRPCInferenceService), GRPCInferenceService.typeName);

export function connect(address) {
  return new Client(address, credentials.createInsecure(), {
    "grpc.max_receive_message_length": 64 * 1024 * 1024,
    "grpc.max_send_message_length": 64 * 1024 * 1024,
  });
}

export function authorised(apiKey) {
  const metadata = new Metadata();
  metadata.set("authorization", `Bearer ${apiKey}`);
  return metadata;
}

// One FP32 tensor: values in row-major order.
export function floats(model, input, shape, values, id = "") {
  return create(ModelInferRequestSchema, {
    modelName: model,
    id,
    inputs: [{ name: input, datatype: "FP32", shape: shape.map(BigInt) }],
    rawInputContents: [new Uint8Array(new Float32Array(values).buffer)],
  });
}

export function floatsOf(response, index = 0) {
  const raw = response.rawOutputContents[index];
  return Array.from(new Float32Array(raw.buffer.slice(raw.byteOffset, raw.byteOffset + raw.byteLength)));
}

// A unary RPC as a promise.
export function call(client, method, request, metadata, options = {}) {
  return new Promise((resolve, reject) => {
    client[method](request, metadata, options, (error, response) => (error ? reject(error) : resolve(response)));
  });
}
