"""Which engine runs what Triton calls a platform or a backend, and which file it opens.

Pure. Decides from the configuration and the names of a version's files; never opens one. What no engine here can run is refused
with what to do instead.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import MappingProxyType

from inference import model_config_pb2 as pb

from runtime.errors import Code, PenstockError

MAX_SHOWN = 8


class TritonConfigRefused(PenstockError, code=Code.INVALID_ARGUMENT, reason="TRITON_CONFIG_REFUSED"):
    """A model configuration of Triton's that describes no model, or one that would answer otherwise here."""


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """`file` is the engine's usual one where `parameter` is empty."""

    engine: str
    file: str
    parameter: str = ""
    """What the engine's parameter `file` has to say."""


MAIN_FILES: Mapping[str, str] = MappingProxyType(
    {
        "onnx": "model.onnx",
        "tensorrt": "model.plan",
        "torch": "model.pt2",
        "litert": "model.tflite",
        "python": "model.py",
        "llm": "genai_config.json",
        "upstream": "upstream.toml",
    }
)
_BACKEND_OF_PLATFORM: Mapping[str, str] = MappingProxyType(
    {
        "onnxruntime_onnx": "onnxruntime",
        "tensorrt_plan": "tensorrt",
        "pytorch_libtorch": "pytorch",
        "torch_aoti": "pytorch",
        "torch_export": "pytorch",
        "tensorflow_savedmodel": "tensorflow",
        "tensorflow_graphdef": "tensorflow",
        "litert_tflite": "litert",
        "onnxruntime_genai": "onnxruntime_genai",
    }
)
"""Triton's own (backend_config.cc), then those that workers here report."""

_ENGINE_OF_BACKEND: Mapping[str, str] = MappingProxyType(
    {
        "onnxruntime": "onnx",
        "tensorrt": "tensorrt",
        "pytorch": "torch",
        "tensorflow": "litert",
        "litert": "litert",
        "armnn_tflite": "litert",
        "python": "python",
        "onnxruntime_genai": "llm",
        "upstream": "upstream",
    }
)
_ENGINE_OF_SUFFIX: Mapping[str, str] = MappingProxyType(
    {".onnx": "onnx", ".plan": "tensorrt", ".engine": "tensorrt", ".pt2": "torch", ".tflite": "litert"}
)
_INSTEAD: Mapping[str, str] = MappingProxyType(
    {
        "ensemble": "publish the models it is made of, and call them one after the other",
        "vllm": "serve it with vLLM, and publish a model of engine 'upstream' in front",
        "tensorrtllm": "serve it with trtllm-serve, and publish a model of engine 'upstream' in front",
        "openvino": "export the model to ONNX",
        "fil": "convert the trees to ONNX (hummingbird, onnxmltools, skl2onnx)",
        "dali": "preprocess before the call, or in a model of engine 'python'",
    }
)


def engine_of(source: str, config: pb.ModelConfig, paths: Collection[str]) -> EngineChoice:
    """The engine and its file among a version's files, by their paths. Raises TritonConfigRefused."""
    named = config.default_model_filename
    if named and not is_inside(named):
        raise TritonConfigRefused(f"{source}: default_model_filename {named[:80]!r} leads out of the version's folder")
    backend = config.backend or _BACKEND_OF_PLATFORM.get(config.platform, config.platform)
    if backend:
        engine = _ENGINE_OF_BACKEND.get(backend)
        if engine is None:
            raise TritonConfigRefused(_no_engine(source, backend))
    else:
        engine = _engine_of_files(source, named, paths)
    choice = _file_of(source, engine, named, paths)
    _check_suffix(source, backend, choice)
    return choice


def listed(names: Collection[str]) -> str:
    """Some of them, for a sentence."""
    shown = ", ".join(sorted(names)[:MAX_SHOWN]) or "none"
    return f"{shown} and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else shown


def _no_engine(source: str, backend: str) -> str:
    instead = _INSTEAD.get(backend, "convert the model to one of: onnx, torch.export, a TensorRT plan, TensorFlow Lite")
    return f"{source}: nothing here runs backend {backend[:80]!r}; {instead}"


def _engine_of_files(source: str, named: str, paths: Collection[str]) -> str:
    """Without platform and backend, Triton goes by the usual file names; so does this."""
    if named:
        candidates = {named}
    else:
        usual = {file for file in MAIN_FILES.values() if file in paths or any(path.startswith(f"{file}/") for path in paths)}
        candidates = usual or {path for path in paths if "/" not in path}
    engines = {engine for name in candidates if (engine := _engine_of_name(name)) is not None}
    if len(engines) != 1:
        raise TritonConfigRefused(
            f"{source}: neither platform nor backend is given, and the files do not tell the engine: {listed(paths)};"
            f" expected is one of: {', '.join(sorted(MAIN_FILES.values()))}"
        )
    return engines.pop()


def _engine_of_name(name: str) -> str | None:
    usual = {file: engine for engine, file in MAIN_FILES.items()}
    return usual.get(name) or _ENGINE_OF_SUFFIX.get(PurePosixPath(name).suffix)


def _file_of(source: str, engine: str, named: str, paths: Collection[str]) -> EngineChoice:
    usual = MAIN_FILES[engine]
    wanted = named or usual
    if engine == "onnx" and wanted not in paths and f"{wanted}/{usual}" in paths:
        wanted = f"{wanted}/{usual}"  # a model with external data: Triton lets model.onnx be a folder
    if wanted not in paths and not named:
        wanted = _only_one(engine, paths) or wanted
    if wanted not in paths:
        raise TritonConfigRefused(_missing_file(source, engine, wanted, paths))
    return EngineChoice(engine, wanted, "" if wanted == usual else wanted)


def _only_one(engine: str, paths: Collection[str]) -> str | None:
    """The one file of the engine's kind, where it has another name than usual."""
    found = [path for path in paths if "/" not in path and _ENGINE_OF_SUFFIX.get(PurePosixPath(path).suffix) == engine]
    return found[0] if len(found) == 1 else None


def _missing_file(source: str, engine: str, wanted: str, paths: Collection[str]) -> str:
    if engine == "torch" and any(path.endswith(".pt") for path in paths):
        return (
            f"{source}: TorchScript (model.pt) is not run here; save the model with torch.export.save as {MAIN_FILES['torch']}"
        )
    if engine == "litert" and not any(path.endswith(".tflite") for path in paths):
        return (
            f"{source}: TensorFlow's own formats are not run here; convert the model to TensorFlow Lite (model.tflite) or ONNX"
        )
    return f"{source}: engine {engine!r} needs {wanted[:80]!r} in the version's folder, which holds: {listed(paths)}"


def _check_suffix(source: str, backend: str, choice: EngineChoice) -> None:
    suffix = PurePosixPath(choice.file).suffix
    if choice.engine == "torch" and suffix == ".pt":
        raise TritonConfigRefused(_missing_file(source, "torch", choice.file, [choice.file]))
    if choice.engine == "litert" and suffix != ".tflite":
        raise TritonConfigRefused(_missing_file(source, "litert", choice.file, [choice.file]))
    if choice.engine in ("python", "llm", "upstream") and choice.parameter:
        raise TritonConfigRefused(
            f"{source}: backend {backend!r} is run here from {MAIN_FILES[choice.engine]} alone; rename {choice.file[:80]!r}"
        )


def is_inside(path: str) -> bool:
    """Whether a relative path with forward slashes stays in its folder and could be one in a manifest."""
    segments = path.split("/")
    return (
        "\\" not in path and path.isprintable() and len(path) <= 1024 and all(part not in ("", ".", "..") for part in segments)
    )
