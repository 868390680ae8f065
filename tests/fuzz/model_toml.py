"""`model.toml` texts made of choices: the fields that exist, and values that need not fit them."""

from __future__ import annotations

import json
from collections.abc import Callable

from tests.fuzz.choices import Choices
from tests.fuzz.messages import DATATYPE_NAMES

_SCALARS = (
    *("true", "false", "0", "-1", "-1.0", "1.5", "nan", "inf", "1e400", "[]", "{}", '""'),
    *("1979-05-27", "07:32:00", "1979-05-27T07:32:00Z", "9" * 40, "2147483648", "18446744073709551616"),
)
_NEEDED = ("name", "engine", "outputs", "datatype", "shape", "input", "output", "kind", "runtime", "version")
_Field = tuple[str, Callable[[Choices], str]]


def model_toml(choices: Choices) -> str:
    """A description, every table of it written inline."""
    lines = [f"{name} = {value}" for name, value in _fields(choices, _TOP)]
    lines += [f"{json.dumps(choices.text())} = {_any(choices, 2)}" for _ in range(choices.flag(16))]
    return "\n".join(lines)


def _fields(choices: Choices, known: tuple[_Field, ...]) -> list[tuple[str, str]]:
    """Most of the fields, with values that mostly fit."""
    return [
        (name, _any(choices, 2) if choices.flag(40) else make(choices))
        for name, make in known
        if not choices.flag(40 if name in _NEEDED else 3)
    ]


def _table(known: tuple[_Field, ...]) -> Callable[[Choices], str]:
    return lambda choices: "{" + ", ".join(f"{name} = {value}" for name, value in _fields(choices, known)) + "}"


def _list_of(make: Callable[[Choices], str]) -> Callable[[Choices], str]:
    return lambda choices: "[" + ", ".join(make(choices) for _ in range(choices.one_of((1, 1, 2, 0)))) + "]"


def _keyed(key: Callable[[Choices], str], make: Callable[[Choices], str]) -> Callable[[Choices], str]:
    def made(choices: Choices) -> str:
        entries = {key(choices): make(choices) for _ in range(choices.below(3))}
        return "{" + ", ".join(f"{_text(name)} = {value}" for name, value in entries.items()) + "}"

    return made


def _word(*words: str) -> Callable[[Choices], str]:
    return lambda choices: _text(choices.one_of(words))


def _mostly(word: str) -> Callable[[Choices], str]:
    return lambda choices: _text(word if not choices.flag(12) else choices.text())


def _text(value: str) -> str:
    return json.dumps(value).replace("\x7f", "\\u007F")


def _anything(choices: Choices) -> str:
    return _text(choices.text())


def _number(choices: Choices) -> str:
    return str(choices.whole() if choices.flag(16) else choices.below(10))


def _size(choices: Choices) -> str:
    return str(choices.one_of((-1, 0, 1, 2, 2**31)) if choices.flag() else choices.below(10))


def _flag(choices: Choices) -> str:
    return choices.one_of(("false", "true"))


def _any(choices: Choices, depth: int) -> str:
    """Any TOML value."""
    kind = choices.below(5 if depth else 3)
    if kind == 0:
        return choices.one_of(_SCALARS)
    if kind == 1:
        return str(choices.whole(signed=True))
    if kind == 2:
        return _anything(choices)
    if kind == 3:
        return f"[{', '.join(_any(choices, depth - 1) for _ in range(choices.below(4)))}]"
    return _keyed(lambda each: each.text(), lambda each: _any(each, depth - 1))(choices)


_TENSOR: tuple[_Field, ...] = (
    ("name", _word("x", "y", "z")),
    ("datatype", _word(*DATATYPE_NAMES)),
    ("shape", _list_of(_size)),
    ("labels", _list_of(_anything)),
    ("optional", _flag),
)
_POLICY: tuple[_Field, ...] = (
    ("timeout_action", _word("reject", "delay")),
    ("default_timeout_us", _number),
    ("allow_timeout_override", _flag),
    ("max_queue_size", _number),
)
_BATCHING: tuple[_Field, ...] = (
    ("max_queue_delay_us", _number),
    ("preferred_batch_sizes", _list_of(_number)),
    ("max_queue_size", _number),
    ("preserve_ordering", _flag),
    ("priority_levels", _number),
    ("default_priority_level", _number),
    ("default_queue_policy", _table(_POLICY)),
    ("priority_queue_policies", _keyed(_number, _table(_POLICY))),
)
_CONTROL: tuple[_Field, ...] = (
    ("input", _mostly("s")),
    ("kind", _word("start", "end", "ready", "corrid")),
    ("datatype", _word(*DATATYPE_NAMES)),
)
_STATE: tuple[_Field, ...] = (("input", _mostly("s")), ("output", _mostly("t")), *_TENSOR[1:3])
_SEQUENCES: tuple[_Field, ...] = (
    ("strategy", _word("direct", "oldest")),
    ("max_idle_us", _number),
    ("max_sequences", _number),
    ("max_waiting_sequences", _number),
    ("controls", _list_of(_table(_CONTROL))),
    ("states", _list_of(_table(_STATE))),
)
_WARMED: tuple[_Field, ...] = (
    ("data", _word("zeros", "random", "file")),
    ("file", _mostly("w.bin")),
    ("shape", _list_of(_size)),
)
_WARM_UP: tuple[_Field, ...] = (
    ("name", _anything),
    ("rows", _number),
    ("count", _number),
    ("inputs", _keyed(lambda each: each.one_of(("x", "y", "z")), _table(_WARMED))),
)
_COMPILED: tuple[_Field, ...] = (
    ("runtime", _mostly("rtx")),
    ("version", _mostly("1.0")),
    ("compute_capabilities", _list_of(_anything)),
)
_TOP: tuple[_Field, ...] = (
    ("name", _mostly("m")),
    ("engine", _word("onnx", "llm", "tensorrt")),
    ("task", _word("tensor", "tensor", "chat", "completion", "embedding")),
    ("description", _anything),
    ("max_batch_size", _number),
    ("decoupled", _flag),
    ("instances", _number),
    ("memory_bytes", _number),
    ("inputs", _list_of(_table(_TENSOR))),
    ("outputs", _list_of(_table(_TENSOR))),
    ("batching", _table(_BATCHING)),
    ("sequence_batching", _table(_SEQUENCES)),
    ("warm_ups", _list_of(_table(_WARM_UP))),
    ("compiled_for", _table(_COMPILED)),
    ("parameters", _keyed(lambda each: each.text(), lambda each: _any(each, 1))),
)
