"""Programs of torch.export: names, sizes and what is refused before torch reads it."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.errors import InvalidArgument
from tests.support.public_models import batch, export, torch_affine, torch_identity
from tests.worker.onnx_models import spec
from worker.engine import EngineUnavailable, ModelRefused
from worker.engines.torch import open_torch
from worker.types import ModelSpec, TensorSpec

torch: Any = pytest.importorskip("torch", reason="the package torch is not installed: pip install 'penstock[torch]'")


def described(inputs: Mapping[str, tuple[int, ...]], outputs: Mapping[str, tuple[int, ...]], **other: Any) -> ModelSpec:
    return spec(
        engine="torch",
        inputs=[TensorSpec(name, "FP32", shape) for name, shape in inputs.items()],
        outputs=[TensorSpec(name, "FP32", shape) for name, shape in outputs.items()],
        **other,
    )


SAME = described({"x": (2,)}, {"y": (2,)})


class Sums(torch.nn.Module):  # type: ignore[misc]
    def forward(self, input: Any, b: Any, *, c: Any) -> Any:
        return {"sum": input + b, "difference": b - input, "c": c * 2}


class Pair(torch.nn.Module):  # type: ignore[misc]
    def forward(self, pair: Any) -> Any:
        return pair[0] + 1, pair[1] + 2


class Counting(torch.nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: Any) -> Any:
        self.count += 1
        return x + self.count


class InPlace(torch.nn.Module):  # type: ignore[misc]
    def forward(self, x: Any) -> Any:
        x += 1
        return x * 2


class HiddenInPlace(torch.nn.Module):  # type: ignore[misc]
    """A dropout that drops nothing gives its input itself."""

    def forward(self, x: Any) -> Any:
        return torch.nn.functional.dropout(x.contiguous(), 0.1, False).relu_()


class Free(torch.nn.Module):  # type: ignore[misc]
    def forward(self, x: Any) -> Any:
        return torch.cat([x, x], 1)[:, : x.shape[1] * 2 - 1]


def zeros(*shape: int) -> Any:
    return torch.zeros(*shape)


def test_tensors_go_by_name(tmp_path: Path) -> None:
    rows = {0: batch()}
    folder = export(tmp_path, Sums(), (zeros(3, 2), zeros(3, 2)), {"input": rows, "b": rows, "c": rows}, c=zeros(3, 2))
    inputs = {"c": (2,), "b": (2,), "input": (2,)}
    engine = open_torch(described(inputs, {"difference": (2,), "sum": (2,)}), folder)
    one, two = np.full((4, 2), 1, np.float32), np.full((4, 2), 5, np.float32)
    difference, total = engine.run({"b": two, "c": one, "input": one})
    assert (difference[0, 0], total[0, 0]) == (4, 6)
    with pytest.raises(InvalidArgument, match="input 'c' is missing"):
        engine.run({"b": two, "input": one})


def test_outputs_without_names_go_by_order(tmp_path: Path) -> None:
    folder = export(tmp_path, Pair(), ((zeros(3, 2), zeros(3, 2)),), {"pair": ({0: batch()}, {0: batch()})})
    engine = open_torch(described({"pair_0": (2,), "pair_1": (2,)}, {"first": (2,), "second": (2,)}), folder)
    first, second = engine.run({"pair_0": np.zeros((1, 2), np.float32), "pair_1": np.ones((1, 2), np.float32)})
    assert (first.tolist(), second.tolist()) == ([[1, 1]], [[3, 3]])
    with pytest.raises(ModelRefused, match="gives 2 tensors, and 1 have names"):
        open_torch(described({"pair_0": (2,), "pair_1": (2,)}, {"first": (2,)}), folder)


@pytest.mark.parametrize(
    ("dynamic", "sentence"),
    [
        (lambda: {"x": {0: batch(most=4)}}, "takes 1 to 4 rows, and its manifest says max_batch_size = 8"),
        (lambda: {"x": {0: batch(least=2)}}, "takes 2 to 1024 rows"),
        (lambda: None, "is [3, 2] in its file and [-1, 2] in the manifest"),
    ],
)
def test_a_batch_that_the_program_does_not_take(tmp_path: Path, dynamic: Callable[[], Any], sentence: str) -> None:
    folder = export(tmp_path, InPlace(), (zeros(3, 2),), dynamic())
    with pytest.raises(ModelRefused) as refused:
        open_torch(SAME, folder)
    assert sentence in refused.value.message


def test_a_batch_without_limits(tmp_path: Path) -> None:
    folder = export(tmp_path, Free(), (zeros(3, 5),), {"x": {0: torch.export.Dim("n"), 1: torch.export.Dim("width")}})
    engine = open_torch(described({"x": (-1,)}, {"y": (-1,)}), folder)
    assert engine.run({"x": np.ones((1, 7), np.float32)})[0].shape == (1, 13)


def test_a_size_that_the_guards_refuse_is_the_requests_fault(tmp_path: Path) -> None:
    dynamic = {"x": {0: batch(), 1: torch.export.Dim("width", min=2, max=9)}}
    engine = open_torch(described({"x": (-1,)}, {"y": (-1,)}), export(tmp_path, Free(), (zeros(3, 5),), dynamic))
    with pytest.raises(InvalidArgument, match=r"the model refuses these inputs: .*9"):
        engine.run({"x": np.ones((1, 10), np.float32)})


def test_state_that_would_last_between_requests_is_refused(tmp_path: Path) -> None:
    folder = export(tmp_path, Counting(), (zeros(3, 2),), {"x": {0: batch()}})
    with pytest.raises(ModelRefused, match=r"changes its buffers \['count'\] as it runs"):
        open_torch(SAME, folder)


def test_a_learning_normalisation_is_state(tmp_path: Path) -> None:
    module = torch.nn.BatchNorm1d(2)
    program = torch.export.export(module.train(), (zeros(3, 2),), dynamic_shapes={"input": {0: batch()}})
    torch.export.save(program, tmp_path / "model.pt2")
    with pytest.raises(ModelRefused, match=r"changes its buffers .*running_mean"):
        open_torch(described({"input": (2,)}, {"y": (2,)}), tmp_path)


@pytest.mark.parametrize(("module", "answer"), [(InPlace(), -2.0), (HiddenInPlace(), 0.0)])
def test_what_writes_in_place_does_not_write_into_the_request(tmp_path: Path, module: Any, answer: float) -> None:
    engine = open_torch(SAME, export(tmp_path, module, (zeros(3, 2) - 2,), {"x": {0: batch()}}))
    raw = np.full((2, 2), -2, np.float32).tobytes()
    kept = bytes(bytearray(raw))
    for _ in range(2):
        assert engine.run({"x": np.frombuffer(raw, np.float32).reshape(2, 2)})[0].tolist() == [[answer] * 2] * 2
        assert raw == kept


def test_cuda_is_never_replaced_in_silence(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this torch has CUDA: what is tested is its absence")
    with pytest.raises(EngineUnavailable, match="asks for device 'cuda:1', and torch sees 0 CUDA devices"):
        open_torch(described({"x": (2,)}, {"y": (2,)}, parameters={"device": "cuda:1"}), torch_affine(tmp_path))


def test_threads_only_grow(tmp_path: Path) -> None:
    folder = torch_affine(tmp_path)
    asking = described({"x": (2,)}, {"y": (2,)}, parameters={"intra_op_threads": "3"})
    open_torch(asking, folder)
    open_torch(SAME, folder)
    assert torch.get_num_threads() >= 3


class Network(torch.nn.Module):  # type: ignore[misc]
    """The kinds of layers that models are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.GELU())
        self.attention = torch.nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.dense = torch.nn.Linear(4, 4)
        self.table = torch.tensor([1.0, 2.0, 3.0, 4.0])

    def forward(self, x: Any) -> Any:
        y = self.convolution(x).flatten(2).transpose(1, 2)
        y = self.dense(self.attention(y))
        return torch.nn.functional.interpolate(y * self.table, scale_factor=0.5).softmax(-1)


def test_what_exporters_write_is_data(tmp_path: Path) -> None:
    folder = export(tmp_path, Network(), (zeros(2, 1, 8, 8),), {"x": {0: batch()}})
    engine = open_torch(described({"x": (1, 8, 8)}, {"y": (36, 2)}), folder)
    assert engine.run({"x": np.zeros((3, 1, 8, 8), np.float32)})[0].shape == (3, 36, 2)


class Trap:
    """Unpickling it leaves a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def rewrite(file: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    """The archive with other records; names are within its folder."""
    with zipfile.ZipFile(file) as archive:
        records = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    change(records)
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in records.items():
            archive.writestr(name if name.startswith("../") else f"model/{name}", content)


def program(change: Callable[[Any], None]) -> Callable[[dict[str, bytes], Path], None]:
    def changed(records: dict[str, bytes], _: Path) -> None:
        description = json.loads(records["models/model.json"])
        change(description)
        records["models/model.json"] = json.dumps(description).encode()

    return changed


def first_node(description: Any) -> Any:
    return description["graph_module"]["graph"]["nodes"][0]


def pickled_constant(records: dict[str, bytes], trap: Path) -> None:
    config = json.loads(records["data/weights/model_weights_config.json"])
    config["config"]["w"] = {"path_name": "weight_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    records["data/weights/model_weights_config.json"] = json.dumps(config).encode()
    records["data/weights/weight_0"] = pickle.dumps(Trap(trap))


def trapped_example(records: dict[str, bytes], trap: Path) -> None:
    buffer = io.BytesIO()
    torch.save(((Trap(trap),), {}), buffer)
    records["data/sample_inputs/model.pt"] = buffer.getvalue()


def call(expression: str) -> Callable[[Any], None]:
    def change(description: Any) -> None:
        sizes = description["graph_module"]["graph"]["tensor_values"]["x"]["sizes"]
        sizes[0]["as_expr"]["expr_str"] = expression

    return change


def container(description: Any) -> None:
    signature = description["graph_module"]["module_call_graph"][0]["signature"]
    tree = json.loads(signature["out_spec"])
    tree[1]["type"], tree[1]["context"] = "collections.defaultdict", json.dumps({"default_factory_module": "os"})
    signature["out_spec"] = json.dumps(tree)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda records, _: records.update({"data/constants/custom_obj_0": b""}), "holds 'data/constants/custom_obj_0'"),
        (lambda records, _: records.update({"data/constants/opaque_obj_0": b""}), "holds 'data/constants/opaque_obj_0'"),
        (lambda records, _: records.update({"data/aotinductor/model/a.so": b""}), "holds 'data/aotinductor/model/a.so'"),
        (lambda records, _: records.update({"data/weights/model.pt": b""}), "holds 'data/weights/model.pt'"),
        (lambda records, _: records.update({"../version": b"8.0"}), "do not stand in one folder"),
        (lambda records, _: records.pop("models/model.json"), "has no record 'models/model.json'"),
        (pickled_constant, "tensor 'w' is a pickle"),
        (trapped_example, "example inputs are a pickle of more than tensors"),
        (program(call("__import__('os').getcwd()")), "more than arithmetic"),
        (program(call("sympify('x')")), "more than arithmetic"),
        (program(call("(lambda: 1)()")), "more than arithmetic"),
        (program(call("Symbol('s0'")), "cannot be read"),
        (program(lambda it: it["guards_code"].append("print(L)")), "more than arithmetic"),
        (program(lambda it: first_node(it).update(target="torch.os.getcwd")), "uses 'torch.os.getcwd'"),
        (
            program(lambda it: first_node(it).update(target="torch.ops.aten.from_file.default")),
            "uses 'torch.ops.aten.from_file",
        ),
        (program(lambda it: first_node(it).update(name="x\n  import os")), "is no plain name"),
        (program(lambda it: it["graph_module"]["graph"]["custom_obj_values"].update(a={})), "an object of a class of its own"),
        (program(container), "takes or gives a 'collections.defaultdict'"),
    ],
)
def test_an_archive_that_is_more_than_data(
    tmp_path: Path, change: Callable[[dict[str, bytes], Path], None], sentence: str
) -> None:
    folder, trap = torch_identity(tmp_path / "m", "FP32"), tmp_path / "trap"
    rewrite(folder / "model.pt2", lambda records: change(records, trap))
    with pytest.raises(ModelRefused, match="the program of model 'm' is refused") as refused:
        open_torch(SAME, folder)
    assert sentence in refused.value.message
    assert not trap.exists()


def test_an_archive_written_again_is_still_read(tmp_path: Path) -> None:
    folder = torch_identity(tmp_path, "FP32")
    rewrite(folder / "model.pt2", lambda _: None)
    assert open_torch(SAME, folder).run({"x": np.ones((1, 2), np.float32)})[0].tolist() == [[1, 1]]
