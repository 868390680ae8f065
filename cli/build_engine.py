"""`penstock build-engine`: an ONNX file, or a language model's folder, becomes a model folder with a TensorRT plan in it.

Owns the folder's writing, and what is shown meanwhile. What a plan is made of is `worker/engines/tensorrt/build.py`'s and
`tensorrt_language.py`'s.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from runtime.errors import Code, InvalidArgument, PenstockError
from runtime.model_folder import DESCRIPTION, read_model_folder
from worker.engines.tensorrt.build import BuildOptions, Built, OnProgress, build_plan, find_builder
from worker.engines.tensorrt.engine import PLAN
from worker.engines.tensorrt.language import LanguageOptions, build_language_plan
from worker.engines.tensorrt.plan import Tensor
from worker.engines.tensorrt.profiles import fewest_rows, parse_profiles

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MIB = 1 << 20
NO_COMPANIONS: Mapping[str, Path] = MappingProxyType({})
T = TypeVar("T")


class FolderInUse(PenstockError, code=Code.ALREADY_EXISTS, reason="BUILD_FOLDER_IN_USE"):
    """The output folder holds something that is not an earlier build."""


def build_options(
    profiles: Iterable[str],
    targets: Iterable[str],
    precision: str,
    max_batch_size: int,
    *,
    tf32: bool = True,
    version_compatible: bool = False,
) -> BuildOptions:
    """As they are written on a command line: a target option may hold several, with commas between. Raises ProfileRefused."""
    return BuildOptions(
        profiles=parse_profiles(profiles),
        max_batch_size=max_batch_size,
        targets=tuple(part for text in targets for part in text.split(",") if part.strip()),
        precision=precision,
        tf32=tf32,
        version_compatible=version_compatible,
    )


async def build_engine(
    source: Path, output: Path, options: BuildOptions, *, runtime: str = "", name: str = "", console: Console | None = None
) -> Built:
    """Build and write the folder, which appears whole or not at all. Raises what building raises, FolderInUse."""
    name = _model_name(name, output)
    _check_folder(output, frozenset((PLAN, DESCRIPTION)))
    tensorrt = find_builder(runtime)
    with _shown(console) as on_progress:
        built = await _interruptible(lambda watched: build_plan(tensorrt, source, options, watched), on_progress)
    made = f"{source.name} compiled with {built.runtime} {built.version}, {options.precision}"
    write_folder(output, describe(name, built, made), built.plan)
    return built


async def build_language_engine(
    source: Path,
    output: Path,
    options: BuildOptions,
    language: LanguageOptions,
    *,
    runtime: str = "",
    name: str = "",
    console: Console | None = None,
) -> Built:
    """The same for a folder of ONNX Runtime GenAI's builder, whose tokenizer and configuration go along."""
    name = _model_name(name, output)
    companions = _companions(source)
    _check_folder(output, frozenset((PLAN, DESCRIPTION, *companions)))
    tensorrt = find_builder(runtime)
    with _shown(console) as on_progress:
        built, described = await _interruptible(
            lambda watched: build_language_plan(tensorrt, source, name, options, language, watched), on_progress
        )
    made = f"{source.name} compiled with {built.runtime} {built.version}, {language.sequences} sequences"
    task = "chat" if _has_template(source) else "completion"
    length = language.context_length or described.context_length
    write_folder(
        output, describe_language(name, built, made, task, length), built.plan, {file: source / file for file in companions}
    )
    return built


def write_folder(output: Path, description: str, plan: bytes, companions: Mapping[str, Path] = NO_COMPANIONS) -> None:
    """The plan and what goes along, then the description that makes it a model folder."""
    output.mkdir(parents=True, exist_ok=True)
    (output / DESCRIPTION).unlink(missing_ok=True)
    for file, origin in companions.items():
        if origin.resolve() != (output / file).resolve():
            shutil.copyfile(origin, output / file)
    for file, content in ((PLAN, plan), (DESCRIPTION, description.encode())):
        draft = output / f".{file}"
        draft.write_bytes(content)
        draft.replace(output / file)
    read_model_folder(output)


def describe(name: str, built: Built, description: str) -> str:
    """`model.toml`: what the plan takes and gives, and what it was compiled for."""
    lines = _head(name, "tensor", description, built.max_batch_size)
    for kind, tensors in (("inputs", built.inputs), ("outputs", built.outputs)):
        for tensor in tensors:
            lines += ["", f"[[{kind}]]", *_tensor(tensor, batched=built.max_batch_size > 0)]
    return "\n".join([*lines, *_compiled_for(built)]) + "\n"


def describe_language(name: str, built: Built, description: str, task: str, context_length: int) -> str:
    """`model.toml` of a model that takes text and gives text."""
    lines = _head(name, task, description, 0)
    for kind, tensor in (("inputs", "text_input"), ("outputs", "text_output")):
        lines += ["", f"[[{kind}]]", *_tensor(Tensor(tensor, "BYTES", (1,)), batched=False)]
    lines += ["", "[parameters]", f'context_length = "{context_length}"']
    return "\n".join([*lines, *_compiled_for(built)]) + "\n"


def _head(name: str, task: str, description: str, max_batch_size: int) -> list[str]:
    return [
        f"name = {_text(name)}",
        'engine = "tensorrt"',
        f"task = {_text(task)}",
        f"description = {_text(description)}",
        f"max_batch_size = {max_batch_size}",
    ]


def _compiled_for(built: Built) -> list[str]:
    capabilities = ", ".join(_text(capability) for capability in built.compute_capabilities)
    return [
        "",
        "[compiled_for]",
        f"runtime = {_text(built.runtime)}",
        f"version = {_text('.'.join(built.version.split('.')[:3]))}",
        f"compute_capabilities = [{capabilities}]",
    ]


def summary(built: Built, output: Path) -> list[str]:
    """What a person wants to know of it, a sentence a line."""
    size = f"{len(built.plan) / _MIB:.1f} MiB"
    rows = f"1 to {built.max_batch_size} rows" if built.max_batch_size else "no batch dimension"
    capabilities = ", ".join(built.compute_capabilities)
    lines = [f"{output / PLAN}: {size}, {rows}, for {built.runtime} {built.version} on compute capability {capabilities}"]
    if built.max_batch_size and (fewest := fewest_rows(built.inputs, built.profiles)) > 1:
        lines.append(f"requests of fewer than {fewest} rows will be refused: no profile takes them")
    if built.weights_cut:
        lines.append(f"{built.weights_cut} weights were larger than FP16 holds and were cut to 65504; bf16 holds them")
    lines.append(f"next: penstock models push {output}")
    return lines


def _model_name(name: str, output: Path) -> str:
    """The folder's own, as in Triton's repositories, unless another is given."""
    name = name or output.resolve().name
    if not _NAME.fullmatch(name):
        raise InvalidArgument(f"model name {name!r} may hold letters, digits, '.', '_' and '-'; give another one with --name")
    return name


def _companions(source: Path) -> list[str]:
    """Files of a language model's folder that a plan does not replace."""
    own = (DESCRIPTION, PLAN)
    files = [entry for entry in source.iterdir() if entry.is_file() and not entry.name.startswith(".")]
    return sorted(file.name for file in files if ".onnx" not in file.suffixes and file.name not in own)


def _has_template(source: Path) -> bool:
    """A model that conversations are written for says how."""
    settings = source / "tokenizer_config.json"
    return (source / "chat_template.jinja").is_file() or (
        settings.is_file() and '"chat_template"' in settings.read_text(encoding="utf-8")
    )


def _check_folder(output: Path, ours: AbstractSet[str]) -> None:
    if output.is_file():
        raise FolderInUse(f"{output} is a file; --output names a folder")
    others = [entry.name for entry in output.iterdir() if entry.name not in ours] if output.is_dir() else []
    if others:
        raise FolderInUse(f"{output} holds {min(others)!r}, which is not of an earlier build; choose another --output")


def _tensor(tensor: Tensor, *, batched: bool) -> list[str]:
    shape = tensor.shape[1:] if batched else tensor.shape
    sizes = ", ".join(str(size) for size in shape)
    return [f"name = {_text(tensor.name)}", f"datatype = {_text(tensor.datatype)}", f"shape = [{sizes}]"]


def _text(value: str) -> str:
    """A TOML basic string; JSON's are among them, but for DEL."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


@contextmanager
def _shown(console: Console | None) -> Iterator[OnProgress]:
    """A bar for each phase that TensorRT is in."""
    if console is None:
        yield lambda _phase, _done, _steps: True
        return
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        phases: dict[str, TaskID] = {}

        def on_progress(phase: str, done: int, steps: int) -> bool:
            if phase not in phases:
                phases[phase] = progress.add_task(phase, total=steps)
            progress.update(phases[phase], completed=done, total=steps)
            if done >= steps:
                progress.remove_task(phases.pop(phase))
            return True

        yield on_progress


async def _interruptible(build: Callable[[OnProgress], T], on_progress: OnProgress) -> T:
    """In a thread of its own; cancelling is noticed between two of TensorRT's steps, and waited for."""
    stop = threading.Event()

    def watched(phase: str, done: int, steps: int) -> bool:
        return on_progress(phase, done, steps) and not stop.is_set()

    with ThreadPoolExecutor(1, thread_name_prefix="build") as executor:
        building = asyncio.wrap_future(executor.submit(build, watched))
        try:
            return await asyncio.shield(building)
        except asyncio.CancelledError:
            stop.set()
            building.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise
