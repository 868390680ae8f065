"""A model that a process of its own holds: the folder's class Model. `engine_host.py` has the other kind.

Knows nothing of who asks. What the code raises is told in a sentence, and its traceback goes to the output, which is the log.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import Code, PenstockError
from worker.datatypes import DATATYPES
from worker.engine import Array, ModelRefused

CODE_FILE = "model.py"
Outputs = Mapping[str, tuple[Array, str]]
Inputs = Mapping[str, Array]


class CodeFailed(PenstockError, code=Code.INTERNAL, reason="CODE_FAILED"):
    """The model's own code raised; its log has what."""


class CodeRefused(PenstockError, code=Code.INVALID_ARGUMENT, reason="CODE_REFUSED"):
    """The model's own code raised ValueError, which is how it refuses an input."""


@dataclass(frozen=True, slots=True)
class Hosted:
    """An open model."""

    execute: Callable[[Inputs], Outputs]
    close: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Opening:
    """What to open and within which limits."""

    folder: str
    parameters: Mapping[str, str]
    outputs: tuple[tuple[str, str], ...]
    """Names and datatypes."""
    memory_limit_bytes: int = 0
    """Of address space; 0 = as the parent has it."""
    engine_spec: str = ""
    """A spec whose engine is opened here, pickled and in base64; empty = the folder's own code."""

    def to_text(self) -> str:
        return json.dumps((self.folder, dict(self.parameters), self.outputs, self.memory_limit_bytes, self.engine_spec))

    @classmethod
    def from_text(cls, text: str) -> Opening:
        folder, parameters, outputs, memory_limit_bytes, engine_spec = json.loads(text)
        return cls(folder, parameters, tuple(map(tuple, outputs)), memory_limit_bytes, engine_spec)


def open_code(opening: Opening) -> Hosted:
    """The folder's class Model. Raises ModelRefused with the last line of what it raised."""
    file = Path(opening.folder) / CODE_FILE
    sys.path.insert(0, opening.folder)
    try:
        spec = importlib.util.spec_from_file_location("model", file)
        if spec is None or spec.loader is None:
            raise ModelRefused(f"{CODE_FILE} cannot be imported")
        module = importlib.util.module_from_spec(spec)
        sys.modules["model"] = module
        spec.loader.exec_module(module)
        kind = getattr(module, "Model", None)
        if not isinstance(kind, type) or not callable(getattr(kind, "execute", None)):
            raise ModelRefused(f"{CODE_FILE} has no class Model with a method execute(self, inputs)")
        model = kind(Path(opening.folder), dict(opening.parameters))
    except PenstockError:
        raise
    except (Exception, SystemExit) as error:
        raise ModelRefused(f"{CODE_FILE} raised {last_line(error)}{_place(error, file)}") from error
    return Hosted(lambda inputs: execute_code(model, inputs, opening.outputs), getattr(model, "close", lambda: None))


def execute_code(model: Any, inputs: Inputs, described: tuple[tuple[str, str], ...]) -> Outputs:
    """Raises CodeRefused, CodeFailed; what the code said of it goes to the log alone, for a batch has several callers."""
    try:
        given = model.execute(inputs)
    except ValueError as error:
        traceback.print_exception(error)
        raise CodeRefused(f"the model refuses these inputs: {last_line(error)}") from error
    except Exception as error:
        traceback.print_exception(error)
        raise CodeFailed(f"the model's code raised {type(error).__name__}; the worker's log has the rest") from error
    if not isinstance(given, Mapping):
        raise CodeFailed(f"the model's execute gave a {type(given).__name__}; a mapping of names to arrays is expected")
    return {name: (_output(given, name, datatype), datatype) for name, datatype in described}


def _output(given: Mapping[str, Any], name: str, datatype: str) -> Array:
    if name not in given:
        raise CodeFailed(f"the model's execute gave no output {name!r}; it gave {sorted(map(str, given))[:20]}")
    dtype = DATATYPES[datatype].dtype
    array = np.asarray(given[name], dtype=object if dtype.hasobject else None)  # else it would mix str and bytes by ASCII
    if dtype.hasobject:
        flat = np.empty(array.size, dtype=object)
        flat[:] = [_bytes(element, name) for element in array.reshape(-1).tolist()]
        return flat.reshape(array.shape)
    if array.dtype != dtype:
        raise CodeFailed(f"the model's execute gave output {name!r} as {array.dtype}; the manifest says {datatype}: {dtype}")
    return array


def _bytes(element: object, name: str) -> bytes:
    if isinstance(element, str):
        return element.encode()
    if isinstance(element, bytes):
        return element
    raise CodeFailed(f"the model's execute gave a {type(element).__name__} in output {name!r}; BYTES are bytes or str")


def last_line(error: BaseException) -> str:
    return traceback.format_exception_only(error)[-1].strip()[:300]


def _place(error: BaseException, file: Path) -> str:
    """The line of the model's own file that it came from."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    return f" ({file.name}, line {lines[-1]})" if lines else ""
