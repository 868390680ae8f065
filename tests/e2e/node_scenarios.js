// What @grpc/grpc-js meets at the mesh, beside the example's client. Prints one JSON object; an error ends it with status 1.

import assert from "node:assert/strict";
import { once } from "node:events";
import { status } from "@grpc/grpc-js";
import { create } from "@bufbuild/protobuf";
import { ModelMetadataRequestSchema, ServerReadyRequestSchema } from "./gen/inference/grpc_service_pb.js";
import { authorised, call, connect, floats, floatsOf } from "./inference.js";

const [address, key] = process.argv.slice(2);
const client = connect(address);
const metadata = authorised(key);
const digits = (id) => floats("digits", "image", [1, 1, 8, 8], Array(64).fill(0.5), id);

async function refused(promise) {
  try {
    await promise;
  } catch (error) {
    return error;
  }
  throw new Error("it was not refused");
}

async function unary() {
  const ready = await call(client, "serverReady", create(ServerReadyRequestSchema), metadata);
  assert.equal(ready.ready, true);
  const about = await call(client, "modelMetadata", create(ModelMetadataRequestSchema, { name: "digits" }), metadata);
  assert.deepEqual(about.inputs[0].shape, [-1n, 1n, 8n, 8n]);
  const answer = await call(client, "modelInfer", digits("mine"), metadata);
  assert.equal(answer.id, "mine");
  assert.equal(floatsOf(answer).length, 10);
}

async function errors() {
  const unknown = await refused(call(client, "modelInfer", floats("nobody", "x", [1], [1]), metadata));
  assert.equal(unknown.code, status.NOT_FOUND);
  assert.match(unknown.details, /^Request for unknown model: 'nobody'/);
  assert.ok(unknown.metadata.get("grpc-status-details-bin").length, "no details came with the status");
  const stranger = await refused(call(client, "modelInfer", digits(), authorised("sk-nobody")));
  assert.equal(stranger.code, status.UNAUTHENTICATED);
  const late = await refused(call(client, "modelInfer", digits(), metadata, { deadline: Date.now() - 1 }));
  assert.equal(late.code, status.DEADLINE_EXCEEDED);
}

// One stream: answers in order, an error in their midst that leaves it open.
async function stream() {
  const open = client.modelStreamInfer(metadata);
  const seen = [];
  open.on("data", (message) => seen.push(message.errorMessage ? "error" : message.inferResponse.id));
  open.write(digits("1"));
  open.write(floats("nobody", "x", [1], [1], "2"));
  open.write(digits("3"));
  open.end();
  await once(open, "end");
  assert.deepEqual(seen, ["1", "error", "3"]);
}

async function cancelled() {
  const open = client.modelStreamInfer(metadata);
  open.write(digits("1"));
  await once(open, "data");
  open.cancel();
  const [error] = await once(open, "error");
  assert.equal(error.code, status.CANCELLED);
  await unary();
}

const done = [];
for (const scenario of [unary, errors, stream, cancelled]) {
  await scenario();
  done.push(scenario.name);
}
client.close();
console.log(JSON.stringify(done));
