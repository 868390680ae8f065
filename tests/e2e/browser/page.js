// What a page of another origin does with the mesh: gRPC-Web by generated stubs, and OpenAI's events by fetch. Leaves what it met
// in window.result.

import { create } from "@bufbuild/protobuf";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";
import { GRPCInferenceService, ModelInferRequestSchema } from "./gen/inference/grpc_service_pb.js";

const { base, key } = Object.fromEntries(new URLSearchParams(window.location.search));
const met = {};

function clientWith(apiKey) {
  const authorise = (next) => (request) => {
    request.header.set("authorization", `Bearer ${apiKey}`);
    return next(request);
  };
  return createClient(GRPCInferenceService, createGrpcWebTransport({ baseUrl: base, interceptors: [authorise] }));
}

function digits(model = "digits") {
  const pixels = new Float32Array(64).map((_, at) => (at % 8 === 4 ? 1 : 0));
  return create(ModelInferRequestSchema, {
    modelName: model,
    id: "from a page",
    inputs: [{ name: "image", datatype: "FP32", shape: [1n, 1n, 8n, 8n] }],
    rawInputContents: [new Uint8Array(pixels.buffer)],
  });
}

async function refusal(promise) {
  try {
    await promise;
    return "it was not refused";
  } catch (error) {
    const refused = ConnectError.from(error);
    return `${Code[refused.code]}: ${refused.rawMessage}`;
  }
}

async function events() {
  const body = { model: "sums", stream: true, messages: [{ role: "user", content: "2 + 2 =" }] };
  const headers = { authorization: `Bearer ${key}`, "content-type": "application/json", "x-request-id": "r-of-the-page" };
  const answer = await fetch(`${base}/v1/chat/completions`, { method: "POST", headers, body: JSON.stringify(body) });
  met.seenId = answer.headers.get("x-request-id");
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (let part = await reader.read(); !part.done; part = await reader.read()) text += part.value;
  return text;
}

async function main() {
  const answer = await clientWith(key).modelInfer(digits());
  met.id = answer.id;
  met.scores = answer.rawOutputContents[0].length / 4;
  met.unknown = await refusal(clientWith(key).modelInfer(digits("nobody")));
  met.stranger = await refusal(clientWith("sk-nobody").modelInfer(digits()));
  met.events = await events();
}

main()
  .catch((error) => (met.failure = `${error}\n${error.stack}`))
  .finally(() => (window.result = met));
