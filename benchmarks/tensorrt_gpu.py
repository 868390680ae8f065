"""What TensorRT does on a GPU: builds plans here, runs the tests that need a driver, times executions with and without graphs.

Run: python -m benchmarks.tensorrt_gpu [--model MODEL.onnx --profile …] [--results FILE.json]
Without a GPU it says so and ends with status 0: CI has none. An hour with a GPU is: this script, then its figures into the
decision record about TensorRT.

Each figure is the median of interleaved rounds, through the engine as the worker calls it: staged inputs, one thread a slot.
`overlap` is two slots against one; `graphs` is what a captured graph saves of an execution.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from cli.build_engine import build_engine, build_language_engine, build_options
from runtime.errors import PenstockError
from runtime.ids import Digest
from runtime.model_folder import complete_manifest, hash_file, read_model_folder
from worker.cuda.driver import Device, open_driver
from worker.engine import EngineUnavailable, Generation, Piece, Sampling, TextRequest
from worker.engines.llm.engine import LlmEngine, open_llm
from worker.engines.tensorrt.engine import TensorRtEngine, open_tensorrt
from worker.engines.tensorrt.language import LanguageOptions, open_tensorrt_language
from worker.engines.tensorrt.runtime import find_tensorrt
from worker.spec import spec_of
from worker.types import ModelSpec

ROOT = Path(__file__).resolve().parent.parent
DIGITS = ROOT / "cli" / "demo" / "digits" / "model.onnx"
SUMS = ROOT / "cli" / "demo" / "sums"
GENERATIONS, ANSWER_TOKENS = (1, 4, 8), 24
ROWS = (1, 8, 32)
ROUNDS, ROUND_S = 5, 0.3
TESTS = tuple(f"tests/worker/test_{name}.py" for name in ("cuda", "tensorrt", "tensorrt_build", "tensorrt_language"))
Figures = Mapping[str, float]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parsed(arguments)
    try:
        device = open_driver().devices()[0]
        tensorrt = find_tensorrt((options.runtime,))
        if tensorrt is None:
            raise EngineUnavailable(f"the package {options.runtime} is not installed")
    except EngineUnavailable as error:
        print(f"skipped: {error.message}")
        return 0
    print(f"{device.name}, compute capability {device.compute_capability}, {tensorrt.name} {tensorrt.version}")
    result: dict[str, object] = {"machine": machine(device), "runtime": f"{tensorrt.name} {tensorrt.version}"}
    try:
        result |= {"tests": contract_tests(), "models": measure(options, device)}
        result["language"] = language_figures(options, device)
    except PenstockError as error:  # such as a GPU that the runtime does not know: that, too, is a result
        result["refused"] = error.message
    text = json.dumps(result, indent=2)
    print(text)
    if options.results is not None:
        options.results.write_text(text + "\n")
    return 1 if "refused" in result else 0


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="TensorRT on this machine's GPU.")
    parser.add_argument("--model", type=Path, default=DIGITS)
    parser.add_argument("--language", type=Path, default=SUMS, help="a folder of ONNX Runtime GenAI's model builder")
    parser.add_argument("--profile", action="append", default=[])
    parser.add_argument("--precision", action="append", default=[], help="repeatable [default: fp32 and fp16]")
    parser.add_argument("--runtime", default="tensorrt_rtx")
    parser.add_argument("--target", default="", help="compute capability, or current [default: this GPU's]")
    parser.add_argument("--results", type=Path)
    return parser.parse_args(arguments)


def machine(device: Device) -> dict[str, object]:
    return {"device": asdict(device), "python": platform.python_version(), "cpu": platform.processor() or platform.machine()}


def contract_tests() -> str:
    """The last line of pytest: with a driver, the skipped half of them runs."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout[-4000:])
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else f"pytest exited {done.returncode}"


def measure(options: argparse.Namespace, device: Device) -> list[dict[str, object]]:
    """Every precision: built, opened, compared with ONNX Runtime, timed."""
    profiles = options.profile or [f"image:1x1x8x8,{ROWS[1]}x1x8x8,{ROWS[-1]}x1x8x8"]
    target = options.target or device.compute_capability
    found: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for precision in options.precision or ("fp32", "fp16"):
            folder = Path(scratch, f"model-{precision}")
            began = time.perf_counter()
            asyncio.run(build_engine(options.model, folder, build_options(profiles, (target,), precision, 0)))
            build_s = time.perf_counter() - began
            found.append({"precision": precision, "build_s": round(build_s, 2)} | model_figures(options.model, folder))
    return found


def model_figures(onnx: Path, folder: Path) -> dict[str, object]:
    spec = served(folder)
    began = time.perf_counter()
    engine = open_tensorrt(spec, folder)
    figures: dict[str, object] = {"open_s": round(time.perf_counter() - began, 2)}
    try:
        figures["largest_difference"] = difference(onnx, spec, engine)
        figures["device_bytes"] = engine.device_bytes
    finally:
        engine.close()
    ways = {
        "graphs": spec,
        "no graphs": replace(spec, parameters={"cuda_graphs": "off"}),
        "captured here": replace(spec, parameters={"cuda_graphs": "8"}),
        "spinning": replace(spec, parameters={"wait": "spin"}),
    }
    figures["execution_us"] = {name: executions(way, folder) for name, way in ways.items()}
    figures["rows_per_s"] = {f"{slots} slots": throughput(replace(spec, instances=slots), folder) for slots in (1, 2)}
    return figures


def served(folder: Path) -> ModelSpec:
    read = read_model_folder(folder)
    digests = {file.path: hash_file(file.file) for file in read.files}
    return spec_of(complete_manifest(read, "1", digests), Digest(digests.get("model.plan", "0" * 64)))


def language_figures(options: argparse.Namespace, device: Device) -> dict[str, object]:
    """Tokens a second from a plan, and whether they are those that ONNX Runtime gives on the CPU."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "language")
        chosen = build_options((), (options.target or device.compute_capability,), "fp32", 0)
        language = LanguageOptions(sequences=max(GENERATIONS))
        asyncio.run(build_language_engine(options.language, folder, chosen, language))
        mine = open_tensorrt_language(served(folder), folder)
        try:
            right = open_llm(served(options.language), options.language)
            try:
                same = generated(mine, 3)[0] == generated(right, 3)[0]
            finally:
                right.close()
            rates = {f"{count} at once": round(generated(mine, count)[1]) for count in GENERATIONS}
        finally:
            mine.close()
    return {"same_tokens_as_onnx_runtime": same, "tokens_per_s": rates}


def generated(engine: LlmEngine, count: int) -> tuple[list[int], float]:
    """Greedy answers of so many generations side by side, and the tokens a second of all."""
    running: list[Generation] = [
        engine.begin(TextRequest(f"What is {7 * number + 12} plus 34?", Sampling(temperature=0), max_tokens=ANSWER_TOKENS))
        for number in range(count)
    ]
    tokens: list[int] = []
    began = time.perf_counter()
    while running:
        for each, answer in zip(list(running), engine.step(running), strict=True):
            if isinstance(answer, PenstockError):
                raise answer
            if isinstance(answer, Piece):
                tokens += answer.token_ids
                if answer.finish is not None:
                    running.remove(each)
                    each.close()
    return sorted(tokens), len(tokens) / (time.perf_counter() - began)


def random_inputs(spec: ModelSpec, rows: int) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    random = np.random.default_rng(rows)
    return {tensor.name: random.random((rows, *tensor.shape), np.float32) for tensor in spec.inputs}


def difference(onnx: Path, spec: ModelSpec, engine: TensorRtEngine) -> float:
    """From what ONNX Runtime computes on the CPU; the worst of all batch sizes."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(onnx), providers=["CPUExecutionProvider"])
    worst = 0.0
    for rows in ROWS:
        inputs = random_inputs(spec, rows)
        wanted = session.run([output.name for output in spec.outputs], inputs)
        for _ in range(5):  # a graph is captured meanwhile
            for mine, right in zip(engine.run(inputs), wanted, strict=True):
                worst = max(worst, float(np.abs(mine - right).max()))
    return worst


def executions(spec: ModelSpec, folder: Path) -> dict[str, float]:
    """Median µs of one execution, by rows."""
    engine = open_tensorrt(spec, folder)
    try:
        took: dict[int, list[float]] = {rows: [] for rows in ROWS}
        for _ in range(ROUNDS):
            for rows in ROWS:
                took[rows].append(one_round(lambda rows=rows: staged_run(engine, spec, rows)))  # type: ignore[misc]
        return {f"{rows} rows": round(statistics.median(each), 1) for rows, each in took.items()}
    finally:
        engine.close()


def one_round(work: Callable[[], None]) -> float:
    """Median µs of `work` over a while."""
    took, until = [], time.perf_counter() + ROUND_S
    while (began := time.perf_counter()) < until:
        work()
        took.append((time.perf_counter() - began) * 1e6)
    return statistics.median(took)


def staged_run(engine: TensorRtEngine, spec: ModelSpec, rows: int, slot: int = 0) -> None:
    staged = engine.staging({tensor.name: ((rows, *tensor.shape), tensor.datatype) for tensor in spec.inputs}, slot)
    if staged is None:
        raise EngineUnavailable(f"no profile of the plan takes {rows} rows; give --profile with 1 to {ROWS[-1]}")
    for array in staged.values():
        array.fill(1)
    engine.run(staged, slot)


def throughput(spec: ModelSpec, folder: Path) -> float:
    """Rows a second at the largest batch, a thread for each slot."""
    engine = open_tensorrt(spec, folder)
    done = [0] * engine.slots

    def work(slot: int, until: float) -> None:
        while time.perf_counter() < until:
            staged_run(engine, spec, ROWS[-1], slot)
            done[slot] += ROWS[-1]

    try:
        for slot in range(engine.slots):
            work(slot, time.perf_counter() + ROUND_S)  # graphs, kernels
        done[:] = [0] * engine.slots
        until = time.perf_counter() + ROUNDS * ROUND_S
        threads = [threading.Thread(target=work, args=(slot, until)) for slot in range(engine.slots)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return round(sum(done) / (ROUNDS * ROUND_S))
    finally:
        engine.close()


if __name__ == "__main__":
    sys.exit(main())
