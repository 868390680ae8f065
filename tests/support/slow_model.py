"""Models that take as long as they are told to, and cost no CPU meanwhile: x after x seconds, one request at a time.

Their code runs in processes of its own, so a worker has to be told whose code it runs: `settings_for` before a mesh is started,
`trust_operator` once it is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.support.mesh import RunningMesh

_CODE = """
import time

class Model:
    def __init__(self, folder, parameters):
        pass

    def execute(self, inputs):
        time.sleep(float(inputs["x"].max()))
        return {"y": inputs["x"]}
"""

_WORDS_CODE = """
import time
import numpy as np

class Model:
    def __init__(self, folder, parameters):
        pass

    def execute(self, inputs):
        seconds = float(inputs["text"].ravel()[0])
        time.sleep(seconds)
        return {"vector": np.array([[seconds]], np.float32)}
"""

_DESCRIPTION = """
name = "{name}"
engine = "python"
task = "{task}"
description = "Sleeps as long as it is told to."
max_batch_size = 1
memory_bytes = {memory_bytes}
[[inputs]]
name = "{takes}"
datatype = "{datatype}"
shape = [1]
[[outputs]]
name = "{gives}"
datatype = "FP32"
shape = [1]
"""


def slow_model(folder: Path, name: str = "slow", *, memory_bytes: int = 1 << 26) -> Path:
    """A model folder for `penstock models push`: y float32 [1, 1] = x float32 [1, 1]."""
    told = {"name": name, "task": "tensor", "memory_bytes": memory_bytes, "takes": "x", "gives": "y", "datatype": "FP32"}
    return _written(folder, _CODE, told)


def slow_words(folder: Path, name: str = "slow-words", *, memory_bytes: int = 1 << 26) -> Path:
    """The same as an embedding: the vector of a number of seconds is that number."""
    told = {"name": name, "task": "embedding", "memory_bytes": memory_bytes, "takes": "text", "gives": "vector"}
    return _written(folder, _WORDS_CODE, {**told, "datatype": "BYTES"})


def settings_for(folder: Path) -> Mapping[str, str]:
    """What a mesh is started with whose workers will run the operator's code."""
    return {"PENSTOCK_CODE_SIGNERS": str(_signers(folder))}


def trust_operator(mesh: RunningMesh, folder: Path) -> None:
    """Let the workers run, for everybody, code that the mesh's operator signed."""
    keys = (mesh.data / "trusted-signers").read_text().split()
    _signers(folder).write_text(f"{keys[0]} *\n")


def _written(folder: Path, code: str, told: Mapping[str, object]) -> Path:
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(code)
    (folder / "model.toml").write_text(_DESCRIPTION.format_map(told))
    return folder


def _signers(folder: Path) -> Path:
    return folder / "code-signers"
