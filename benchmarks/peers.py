"""The same models served by others, beside us: MLServer with and without its batching, a bare handler, an empty one.

As `benchmarks.serving`: all servers up at once and loaded in turn, CPU of the process tree for each request, in multiples of
bare in the same round. Two models, because the bar depends on the model: for `digits` serving costs several times what
computing does, and batching has little to win; `wide` reads megabytes of weights for each execution, whatever its rows. ONNX
Runtime has one thread everywhere. Where MLServer cannot be installed it is left out, and the reason is said.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from inference import grpc_service_pb2 as pb
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.mlserver import mlserver_environment, mlserver_target
from benchmarks.serving import MODEL, Sample, Target, child, machine, measure, table
from runtime.model_folder import read_model_folder

_WIDTH = 1024

WIDE = """
name = "wide"
engine = "onnx"
task = "tensor"
max_batch_size = 64
[[inputs]]
name = "x"
datatype = "FP32"
shape = [64]
[[outputs]]
name = "y"
datatype = "FP32"
shape = [10]
"""


@dataclass(frozen=True, slots=True)
class Model:
    """A folder with model.toml and model.onnx, and one request for it."""

    name: str
    folder: Path
    payload: bytes

    @property
    def file(self) -> Path:
        return self.folder / "model.onnx"


def model_in(folder: Path) -> Model:
    """With a request of one row of random numbers."""
    manifest = read_model_folder(folder).manifest
    (tensor,) = manifest.inputs
    values = np.random.default_rng(7).random((1, *tensor.shape), dtype=np.float32)
    request = pb.ModelInferRequest(model_name=manifest.model)
    request.inputs.add(name=tensor.name, datatype="FP32", shape=values.shape)
    request.raw_input_contents.append(values.tobytes())
    return Model(manifest.model, folder, request.SerializeToString())


def write_wide(folder: Path) -> Path:
    """64 -> 1024 -> 1024 -> 10: 4 MiB of weights, which a row alone pays for as much as 64 rows do."""
    folder.mkdir()
    (folder / "model.toml").write_text(WIDE)
    dice, sizes = np.random.default_rng(1), (64, _WIDTH, _WIDTH, 10)
    nodes, weights, last = list[onnx.NodeProto](), list[onnx.TensorProto](), "x"
    for number, (rows, columns) in enumerate(pairwise(sizes)):
        weight = (dice.standard_normal((rows, columns)) / np.sqrt(rows)).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{number}"))
        out = "y" if number == len(sizes) - 2 else f"h{number}"
        nodes.append(helper.make_node("MatMul", [last, f"w{number}"], [f"{out}_" if out != "y" else out]))
        if out != "y":
            nodes.append(helper.make_node("Relu", [f"{out}_"], [out]))
        last = out
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 64])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 10])]
    graph = helper.make_graph(nodes, "wide", inputs, outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "model.onnx")
    return folder


def batch_curve(model: Model, console: Console) -> None:
    """What the engine itself needs for a row, by the rows of an execution."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model.file), options, providers=["CPUExecutionProvider"])
    name, shape = session.get_inputs()[0].name, session.get_inputs()[0].shape[1:]
    costs = []
    for rows in (1, 4, 16, 64):
        batch = np.random.default_rng(2).random((rows, *shape), dtype=np.float32)
        session.run(None, {name: batch})
        count, begun_s = 0, time.process_time()
        while time.process_time() - begun_s < 0.3:
            session.run(None, {name: batch})
            count += 1
        costs.append(f"{rows}: {1e6 * (time.process_time() - begun_s) / count / rows:.1f}")
    console.print(f"{model.name}: the engine's own µs a row, by rows in an execution: {', '.join(costs)}", markup=False)


def started(stack: ExitStack, folder: Path, model: Model, mlserver: Path | None) -> Iterator[Target]:
    """Each server with this model, in its own process."""
    own = [sys.executable, "-m"]
    commands = {
        "bare": [*own, "benchmarks.bare", "--model", str(model.file)],
        "empty": [*own, "benchmarks.bare"],
        "worker": [*own, "cli", "worker", "--standalone", "--kserve-port", "0", "--model-folder", str(model.folder)],
    }
    for name, command in commands.items():
        ready = folder / f"{model.name}-{name}.json"
        process, ports = stack.enter_context(child([*command, "--ready-file", str(ready)], ready, ready.with_suffix(".log")))
        yield Target(name, f"127.0.0.1:{ports['kserve_port']}", "", process.pid)
    for batching in (False, True):
        if mlserver is None:
            return
        place = folder / f"{model.name}-mlserver-{batching}"
        yield stack.enter_context(mlserver_target(place, model.name, model.file, mlserver, batching=batching))


def measured(model: Model, targets: list[Target], arguments: argparse.Namespace, console: Console) -> list[Sample]:
    samples = []
    for target in targets:
        measure(target, model.payload, 8, 1.0, -1)
    with Progress(console=console) as progress:
        bar = progress.add_task(model.name, total=arguments.rounds * len(arguments.in_flight) * len(targets))
        for number in range(arguments.rounds):
            for in_flight in arguments.in_flight:
                for target in targets:
                    samples.append(measure(target, model.payload, in_flight, arguments.duration_s, number))
                    progress.advance(bar)
    return samples


def titled(printed: Table, model: Model) -> Table:
    printed.title = f"{model.name}: {printed.title}"
    return printed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--duration-s", type=float, default=3.0)
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--mlserver", type=Path, default=None, help="folder to keep MLServer's environment in")
    parser.add_argument("--output", type=Path, default=None, help="write the samples as JSON")
    arguments = parser.parse_args()
    console, found = Console(width=None if sys.stdout.isatty() else 140), dict[str, list[Sample]]()
    with tempfile.TemporaryDirectory(prefix="penstock-peers-") as name:
        folder = Path(name)
        mlserver = mlserver_environment(arguments.mlserver or folder / "mlserver", console)
        for model in (model_in(MODEL), model_in(write_wide(folder / "wide"))):
            batch_curve(model, console)
            with ExitStack() as stack:
                targets = list(started(stack, folder, model, mlserver))
                found[model.name] = measured(model, targets, arguments, console)
            console.print(titled(table(found[model.name]), model))
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        when = datetime.now(UTC).isoformat(timespec="seconds")
        models = {name: [asdict(sample) for sample in samples] for name, samples in found.items()}
        arguments.output.write_text(json.dumps({"when": when, "machine": machine(), "models": models}, indent=1))


if __name__ == "__main__":
    main()
