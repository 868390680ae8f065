"""A model of another engine, held by a process of its own. Only that process imports this: engines start runners."""

from __future__ import annotations

import pickle
from base64 import b64decode
from pathlib import Path

from worker.engine import ModelRefused, RemoteEngine, TextEngine
from worker.engines import ENGINES
from worker.runner.host import Hosted, Inputs, Opening, Outputs


def open_engine_here(opening: Opening) -> Hosted:
    """The spec's own engine, in this process instead of the runner's. Raises what opening raises."""
    spec = pickle.loads(b64decode(opening.engine_spec))  # noqa: S301  # from the runner, which is the worker
    engine = ENGINES[spec.engine](spec, Path(opening.folder))
    if isinstance(engine, TextEngine | RemoteEngine):
        raise ModelRefused(f"engine {spec.engine!r} takes no tensors and has no process of its own")

    def execute(inputs: Inputs) -> Outputs:
        arrays = engine.run(inputs)
        return {name: (array, datatype) for (name, datatype), array in zip(opening.outputs, arrays, strict=True)}

    return Hosted(execute, engine.close)
