"""ONNX to a TensorRT plan, on a machine that need not have a GPU (with TensorRT-RTX).

Decides what a build may ask for, and says what stopped one in a sentence: the operator and its node, the profile, the target.
Never writes a model folder and never runs a plan. Types are the graph's own (strongly typed networks); `half_precision.py`
changes them. Source: TensorRT-RTX documentation, "CPU-Only AOT and TensorRT-RTX Engines".
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.errors import Code, PenstockError
from worker.cuda.driver import open_driver
from worker.engine import EngineUnavailable
from worker.engines.tensorrt.half_precision import convert
from worker.engines.tensorrt.plan import DATATYPE_NAMES, Tensor
from worker.engines.tensorrt.profiles import Ranges, batch_size, fit_profiles
from worker.engines.tensorrt.runtime import EXTRA, FULL, LEAN, RTX, TensorRt, find_tensorrt

PRECISIONS = ("fp32", "fp16", "bf16", "int8")
CURRENT, AMPERE_PLUS = "current", "ampere+"
_RTX_DEFAULT = ("SM80", "SM86", "SM89", "SM120")
"""What TensorRT-RTX builds for when it is told nothing; told all the same, so that the manifest says it."""
_AMPERE_PLUS = ("8.0", "8.6", "8.7", "8.9", "9.0", "10.0", "10.3", "11.0", "12.0", "12.1")
_UNSUPPORTED = re.compile(r"UNSUPPORTED_NODE|plugin|Plugin")

OnProgress = Callable[[str, int, int], bool]
"""A phase's name, steps done, steps in all. False stops the build."""


class BuildRefused(PenstockError, code=Code.INVALID_ARGUMENT, reason="BUILD_REFUSED"):
    """TensorRT does not make a plan of this model, for this target, with these profiles."""


class BuildStopped(PenstockError, code=Code.CANCELLED, reason="BUILD_STOPPED"):
    """Somebody stopped it."""


@dataclass(frozen=True, slots=True)
class BuildOptions:
    profiles: tuple[Ranges, ...] = ()
    max_batch_size: int = 0
    """Stands in for profiles where only batches vary."""
    targets: tuple[str, ...] = ()
    """Compute capabilities such as sm80 or 8.0, or `current`; empty = the runtime's usual ones."""
    precision: str = "fp32"
    tf32: bool = True
    """FP32 products may round to TF32 first, as is TensorRT's own default."""
    version_compatible: bool = False
    """A plan for the lean runtime. Of the full TensorRT only."""


@dataclass(frozen=True, slots=True)
class Built:
    """A plan, and what its manifest has to say."""

    plan: bytes
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    profiles: tuple[Ranges, ...]
    max_batch_size: int
    runtime: str
    version: str
    compute_capabilities: tuple[str, ...]
    weights_cut: int


def no_progress(_: str, __: int, ___: int) -> bool:
    """For those who do not watch."""
    return True


def find_builder(runtime: str = "") -> TensorRt:
    """A package that builds: TensorRT-RTX, which needs no GPU for it, before the full one. Raises EngineUnavailable."""
    if runtime == LEAN:
        raise EngineUnavailable("tensorrt_lean only runs plans; build with --runtime tensorrt --version-compatible")
    if runtime not in ("", FULL, RTX):
        raise EngineUnavailable(f"there is no runtime {runtime!r}; known: {RTX}, {FULL}")
    found = find_tensorrt((runtime,) if runtime else (RTX, FULL), warnings=False)  # its author cannot act on them
    if found is None:
        raise EngineUnavailable(f"building an engine needs the package {runtime or RTX}: {EXTRA}")
    return found


def build_plan(tensorrt: TensorRt, onnx: Path, options: BuildOptions, on_progress: OnProgress = no_progress) -> Built:
    """Raises BuildRefused, ProfileRefused, PrecisionRefused, BuildStopped, EngineUnavailable."""
    if not onnx.is_file():
        raise BuildRefused(f"there is no file {onnx}")
    if options.precision not in PRECISIONS:
        raise BuildRefused(f"there is no precision {options.precision!r}; known: {', '.join(PRECISIONS)}")
    targets = resolve_targets(tensorrt, options.targets)
    converted = options.precision in ("fp16", "bf16")
    with tempfile.TemporaryDirectory(prefix="penstock-build-") if converted else nullcontext("") as folder:
        weights_cut = 0
        graph = onnx
        if converted:
            graph = Path(folder) / "model.onnx"
            weights_cut = convert(onnx, graph, options.precision)
        return _build(tensorrt, onnx, graph, options, targets, weights_cut, on_progress)


def resolve_targets(tensorrt: TensorRt, texts: Sequence[str]) -> tuple[str, ...]:
    """Targets by the runtime's own names. Raises BuildRefused for one that it does not build for."""
    wanted = [text.strip().lower() for text in texts if text.strip()]
    if tensorrt.name != RTX:
        if wanted and wanted not in ([CURRENT], [AMPERE_PLUS]):
            raise BuildRefused(
                f"the full TensorRT builds for the GPU it runs on; target {', '.join(wanted)} can be: {CURRENT}, {AMPERE_PLUS}"
            )
        return (wanted[0] if wanted else CURRENT,)
    known = [name for name in tensorrt.module.ComputeCapability.__members__ if name.startswith("SM")]
    if wanted == [CURRENT]:
        return ("CURRENT",)
    found = [next((name for name in known if _same(name, text)), "") for text in wanted]
    if "" in found:
        raise BuildRefused(
            f"target {wanted[found.index('')]!r} is none that {tensorrt.name} {tensorrt.version} builds for; it builds for:"
            f" {', '.join(f'{name.lower()} ({_capability(name)})' for name in known)}, {CURRENT}"
        )
    return tuple(dict.fromkeys(found)) or tuple(name for name in _RTX_DEFAULT if name in known)


def _build(
    tensorrt: TensorRt,
    named: Path,
    graph: Path,
    options: BuildOptions,
    targets: tuple[str, ...],
    weights_cut: int,
    on_progress: OnProgress,
) -> Built:
    module = tensorrt.module
    tensorrt.messages.clear()
    builder = module.Builder(tensorrt.logger)
    network = builder.create_network(1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(tensorrt, network, named, graph)
    if options.precision == "int8" and not _quantised(module, network):
        raise BuildRefused(
            f"precision int8 needs a quantised graph, and {named} has no QuantizeLinear; quantise it first, for example with"
            " onnxruntime.quantization.quantize_static (QuantFormat.QDQ) and data of yours"
        )
    inputs = tuple(_tensor(network.get_input(index)) for index in range(network.num_inputs))
    outputs = tuple(_tensor(network.get_output(index)) for index in range(network.num_outputs))
    profiles = fit_profiles(inputs, options.profiles, options.max_batch_size)
    config = builder.create_builder_config()
    for ranges in profiles:
        _add_profile(tensorrt, builder, config, ranges)
    capabilities = _aim(tensorrt, config, targets)
    _set_flags(tensorrt, config, options)
    monitor = _monitor(module, on_progress)  # has to outlive the build
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        if monitor.stopped:
            raise BuildStopped("the build was stopped; nothing was written")
        raise BuildRefused(f"{tensorrt.name} {tensorrt.version} makes no plan of {named}: {tensorrt.messages.first()}")
    return Built(
        bytes(plan),
        inputs,
        outputs,
        profiles,
        batch_size(inputs, outputs, profiles),
        LEAN if options.version_compatible else tensorrt.name,
        tensorrt.version,
        capabilities,
        weights_cut,
    )


def _parse(tensorrt: TensorRt, network: Any, named: Path, graph: Path) -> None:
    parser = tensorrt.module.OnnxParser(network, tensorrt.logger)
    if parser.parse_from_file(str(graph)):
        return
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        reason = (error.desc() or "").strip().removeprefix("Assertion failed: ")[:300]
        if error.node() < 0:
            raise BuildRefused(f"{named} cannot be read as ONNX: {reason}")
        node = f"node {error.node_name() or error.node()!r} ({error.node_operator()})"
        if _UNSUPPORTED.search(f"{error.code()} {reason}"):
            raise BuildRefused(f"{named}: {tensorrt.name} {tensorrt.version} has no operator for {node}: {reason}")
        raise BuildRefused(f"{named}: {tensorrt.name} {tensorrt.version} does not take {node}: {reason}")
    raise BuildRefused(f"{named} cannot be parsed: {tensorrt.messages.first()}")


def _tensor(tensor: Any) -> Tensor:
    if getattr(tensor, "is_shape_tensor", False) and len(tensor.shape) <= 1 and tensor.is_network_input:
        raise BuildRefused(
            f"the values of input {tensor.name!r} decide about shapes, for which a profile would need values; make it part of"
            " the graph, or export the model without it"
        )
    kind = tensor.dtype.name
    if kind not in DATATYPE_NAMES:
        raise BuildRefused(f"{tensor.name!r} is {kind}, which no request can carry; cast it inside of the graph")
    return Tensor(tensor.name, DATATYPE_NAMES[kind], tuple(tensor.shape))


def _quantised(module: Any, network: Any) -> bool:
    return any(network.get_layer(index).type == module.LayerType.QUANTIZE for index in range(network.num_layers))


def _add_profile(tensorrt: TensorRt, builder: Any, config: Any, ranges: Ranges) -> None:
    profile = builder.create_optimization_profile()
    for name, wanted in ranges.items():
        profile.set_shape(name, wanted.minimum, wanted.optimum, wanted.maximum)
    if config.add_optimization_profile(profile) < 0:
        raise BuildRefused(f"{tensorrt.name} refuses a profile: {tensorrt.messages.first()}")


def _aim(tensorrt: TensorRt, config: Any, targets: Sequence[str]) -> tuple[str, ...]:
    """Set the targets; gives them as a manifest says them."""
    module = tensorrt.module
    if tensorrt.name == RTX:
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            config.set_compute_capability(getattr(module.ComputeCapability, target), index)
        return _here() if tuple(targets) == ("CURRENT",) else tuple(_capability(target) for target in targets)
    if tuple(targets) == (AMPERE_PLUS,):
        config.hardware_compatibility_level = module.HardwareCompatibilityLevel.AMPERE_PLUS
        return _AMPERE_PLUS
    return _here()


def _here() -> tuple[str, ...]:
    return (open_driver().devices()[0].compute_capability,)


def _set_flags(tensorrt: TensorRt, config: Any, options: BuildOptions) -> None:
    flags = tensorrt.module.BuilderFlag
    if not options.tf32:
        config.clear_flag(flags.TF32)
    if tensorrt.name == RTX:
        if options.version_compatible:
            raise BuildRefused("plans of TensorRT-RTX run on the release that made them; leave out --version-compatible")
        if hasattr(flags, "REQUIRE_USER_ALLOCATION"):
            config.set_flag(flags.REQUIRE_USER_ALLOCATION)  # else the plan could not be captured as a graph
    elif options.version_compatible:
        config.set_flag(flags.VERSION_COMPATIBLE)
        # A lean runtime inside of the plan would be host code that comes with a model.
        config.set_flag(flags.EXCLUDE_LEAN_RUNTIME)


def _monitor(module: Any, on_progress: OnProgress) -> Any:
    """TensorRT's own class, which exists only where the package does. It is called from several threads."""
    parent: Any = module.IProgressMonitor

    class Monitor(parent):  # type: ignore[misc]
        def __init__(self) -> None:
            parent.__init__(self)
            self.stopped = False
            self._steps: dict[str, int] = {}

        def phase_start(self, phase: str, _parent: str | None, steps: int) -> None:
            self._steps[phase] = steps
            self._tell(phase, 0)

        def step_complete(self, phase: str, step: int) -> bool:
            self._tell(phase, step + 1)
            return not self.stopped

        def phase_finish(self, phase: str) -> None:
            self._tell(phase, self._steps.pop(phase, 0))

        def _tell(self, phase: str, done: int) -> None:
            if not on_progress(phase, done, self._steps.get(phase, done)):
                self.stopped = True

    return Monitor()


def _same(name: str, text: str) -> bool:
    """sm80, sm_80, 80 and 8.0 all mean SM80."""
    return re.sub(r"[._]", "", text).removeprefix("sm") == name.removeprefix("SM").lower()


def _capability(name: str) -> str:
    """SM120 → 12.0."""
    digits = name.removeprefix("SM")
    return f"{digits[:-1]}.{digits[-1]}"
