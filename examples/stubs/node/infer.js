// Ask the model `digits` from Node.
//
//   npm install && mkdir -p gen && npm run generate
//   node infer.js 127.0.0.1:8001 $PENSTOCK_API_KEY

import { authorised, call, connect, floats, floatsOf } from "./inference.js";

const [address = "127.0.0.1:8001", key = process.env.PENSTOCK_API_KEY ?? ""] = process.argv.slice(2);
const client = connect(address);
try {
  const pixels = Array.from({ length: 64 }, (_, at) => (at % 8 === 4 ? 1 : 0)); // a stroke down the middle
  const answer = await call(client, "modelInfer", floats("digits", "image", [1, 1, 8, 8], pixels), authorised(key));
  const scores = floatsOf(answer);
  console.log(`it is a ${scores.indexOf(Math.max(...scores))}, says ${answer.modelName} version ${answer.modelVersion}`);
} catch (error) {
  console.error(`${error.code}: ${error.details ?? error.message}`);
  process.exitCode = 1;
} finally {
  client.close();
}
