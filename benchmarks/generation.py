"""Ways to run one language model for several generations at once: tokens a second, CPU a token, a late-comer's wait, the GIL.

Three ways, round after round, so that what the machine does meanwhile hits all alike: the `llm` engine's own loop, ONNX Runtime
GenAI's Generators by turns, and GenAI's Engine. All answer greedily, on the same prompt, with as many tokens. Half-way one more
generation comes; how long its first text takes is the late-comer's wait. A thread that sleeps half a millisecond at a time
tells how long the GIL was kept from it. Medians over the rounds. A model whose tokens are no text tells nothing here.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnxruntime_genai as genai
from rich.console import Console
from rich.table import Table

from runtime.errors import PenstockError
from runtime.ids import Digest, ModelName, ModelVersion
from worker.engine import Generation, TextRequest
from worker.engines.llm.engine import Limits, LlmEngine, open_over
from worker.engines.llm.genai_folder import GenaiFolder
from worker.engines.llm.onnx_decoder import open_onnx_decoder
from worker.types import ModelSpec, Task

ROOT = Path(__file__).resolve().parent.parent
SUMS = ROOT / "cli" / "demo" / "sums"
PROMPT = "What is 58 + 67? " * 2
LATE_TOKENS = 3
SLOTS = 64


@dataclass(slots=True)
class Progress:
    """What one run has done so far."""

    late_at: int
    """So many tokens of all generations, then one more comes."""
    tokens: int = 0
    came_s: float | None = None
    late_s: float | None = None

    def late_is_due(self) -> bool:
        """True once."""
        if self.came_s is None and self.tokens >= self.late_at:
            self.came_s = time.perf_counter()
            return True
        return False

    def answered_late(self) -> None:
        if self.late_s is None and self.came_s is not None:
            self.late_s = time.perf_counter() - self.came_s


@dataclass(frozen=True, slots=True)
class Figures:
    tokens_per_s: float
    cpu_ms_per_token: float
    late_ms: float
    stall_ms: float


@dataclass(slots=True)
class Stalls:
    longest_s: float = 0.0
    _stop: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        last = time.perf_counter()
        while not self._stop.wait(0.0005):
            now = time.perf_counter()
            self.longest_s = max(self.longest_s, now - last)
            last = now

    @contextmanager
    def watched(self) -> Iterator[None]:
        thread = threading.Thread(target=self.watch)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()


class Loop:
    """The `llm` engine over `OnnxDecoder`."""

    def __init__(self, folder: Path, threads: int) -> None:
        spec = ModelSpec(ModelName("m"), ModelVersion("1"), Digest("0" * 64), "llm", Task.COMPLETION, 0, (), ())

        def decoder(described: GenaiFolder, limits: Limits) -> Any:
            return open_onnx_decoder(folder, described, slots=SLOTS, context_length=limits.context_length, threads=threads)

        self._engine: LlmEngine = open_over(spec, folder, genai, decoder)

    def run(self, generations: int, tokens: int, progress: Progress) -> None:
        engine = self._engine
        running: list[Generation] = [engine.begin(TextRequest(PROMPT, max_tokens=tokens)) for _ in range(generations)]
        late: Generation | None = None
        while running:
            if progress.late_is_due():
                late = engine.begin(TextRequest(PROMPT, max_tokens=LATE_TOKENS))
                running.append(late)
            for generation, answer in zip(tuple(running), engine.step(running), strict=True):
                if isinstance(answer, PenstockError):
                    raise answer
                if answer is None:
                    continue
                progress.tokens += len(answer.token_ids)
                if generation is late:
                    progress.answered_late()
                if answer.finish is not None:
                    running.remove(generation)
                    generation.close()


class Generators:
    """GenAI's Generator, one for each generation, by turns."""

    def __init__(self, folder: Path, threads: int) -> None:
        self._model = _model(folder, threads)
        self._prompt = genai.Tokenizer(self._model).encode(PROMPT)

    def run(self, generations: int, tokens: int, progress: Progress) -> None:
        running = [[self._generator(tokens), tokens] for _ in range(generations)]
        late: Any = None
        while running:
            if progress.late_is_due():
                late = self._generator(LATE_TOKENS)
                running.append([late, LATE_TOKENS])
            for each in tuple(running):
                each[0].generate_next_token()
                each[0].get_next_tokens()
                progress.tokens += 1
                if each[0] is late:
                    progress.answered_late()
                each[1] -= 1
                if not each[1]:
                    running.remove(each)

    def _generator(self, tokens: int) -> Any:
        parameters = genai.GeneratorParams(self._model)
        parameters.set_search_options(max_length=len(self._prompt) + tokens, do_sample=False)
        generator = genai.Generator(self._model, parameters)
        generator.append_tokens(self._prompt)
        return generator


class Engine:
    """GenAI's Engine, which batches."""

    def __init__(self, folder: Path, threads: int) -> None:
        self._model = _model(folder, threads)
        self._prompt = [int(token) for token in genai.Tokenizer(self._model).encode(PROMPT)]

    def run(self, generations: int, tokens: int, progress: Progress) -> None:
        engine = genai.Engine(self._model)
        events = engine.create_event_buffer(SLOTS)
        requests = [self._request(engine, tokens) for _ in range(generations)]
        while engine.has_pending_requests():
            if progress.late_is_due():
                requests.append(self._request(engine, LATE_TOKENS))
            happened = engine.run(events)
            for event in (happened[index] for index in range(len(happened))):
                if event.token is not None:
                    progress.tokens += 1
                    if len(requests) > generations and event.request == requests[-1]:
                        progress.answered_late()
        for request in requests:
            request.close()

    def _request(self, engine: Any, tokens: int) -> Any:
        request = engine.create_request()
        options = genai.TurnOptions(request)
        options.set_max_generated_tokens(tokens)
        request.begin_turn(self._prompt, options)
        return request


WAYS: dict[str, Callable[[Path, int], Loop | Generators | Engine]] = {
    "llm engine": Loop,
    "GenAI Generators": Generators,
    "GenAI Engine": Engine,
}


def _model(folder: Path, threads: int) -> Any:
    config = genai.Config(str(folder))
    config.clear_providers()
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    return genai.Model(config)


def _endless(folder: Path, into: Path) -> Path:
    """The same model, with an end that it does not come to: its vocabulary's last token."""
    for file in folder.iterdir():
        if file.name != "genai_config.json":
            (into / file.name).symlink_to(file.resolve())
    written = json.loads((folder / "genai_config.json").read_text())
    written["model"]["eos_token_id"] = written["model"]["vocab_size"] - 1
    (into / "genai_config.json").write_text(json.dumps(written))
    return into


def measure(way: Loop | Generators | Engine, generations: int, tokens: int) -> Figures:
    progress, stalls = Progress(late_at=generations * tokens // 2), Stalls()
    with stalls.watched():
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        way.run(generations, tokens, progress)
        wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    late_ms = 1000 * (progress.late_s or 0.0)
    return Figures(progress.tokens / wall_s, 1000 * cpu_s / progress.tokens, late_ms, 1000 * stalls.longest_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=SUMS, help="as GenAI's model builder writes it")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=200, help="of each generation")
    parser.add_argument("--generations", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    genai.disable_telemetry_events()
    with tempfile.TemporaryDirectory() as scratch:
        folder = _endless(asked.folder, Path(scratch))
        ways = {name: make(folder, asked.threads) for name, make in WAYS.items()}
        for way in ways.values():
            measure(way, 1, 8)
        figures: dict[tuple[int, str], list[Figures]] = {}
        for _ in range(asked.rounds):
            for generations in asked.generations:
                for name, way in ways.items():
                    figures.setdefault((generations, name), []).append(measure(way, generations, asked.tokens))
    table = Table("generations", "way", "tokens/s", "CPU ms/token", "late-comer ms", "longest stall ms")
    for (generations, name), rounds in figures.items():
        middle = [
            statistics.median(getattr(each, what) for each in rounds)
            for what in ("tokens_per_s", "cpu_ms_per_token", "late_ms", "stall_ms")
        ]
        table.add_row(str(generations), name, f"{middle[0]:.0f}", *(f"{value:.3g}" for value in middle[1:]))
    Console().print(table)


if __name__ == "__main__":
    main()
