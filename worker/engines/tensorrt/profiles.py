"""Optimisation profiles as people write them, and whether they fit a network. Pure.

`input:1x3x224x224,8x3x224x224,32x3x224x224` is what an input may be at least, should be tuned for, and may be at most; one
shape stands for all three. An input that is named again starts a further profile; one that is named once is in all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from runtime.errors import Code, PenstockError
from worker.engines.tensorrt.plan import Shape, ShapeRange, Tensor

Ranges = Mapping[str, ShapeRange]
EXAMPLE = "input:1x3x224x224,8x3x224x224,32x3x224x224"
_MOST_PROFILES = 64


class ProfileRefused(PenstockError, code=Code.INVALID_ARGUMENT, reason="PROFILE_REFUSED"):
    """A profile is not written as one, or does not fit the network."""


def parse_profiles(texts: Iterable[str]) -> tuple[Ranges, ...]:
    """The profiles in these texts, in order. Raises ProfileRefused."""
    given: dict[str, list[ShapeRange]] = {}
    for text in texts:
        name, wanted = _parse(text)
        given.setdefault(name, []).append(wanted)
    count = max((len(ranges) for ranges in given.values()), default=0)
    if count > _MOST_PROFILES:
        raise ProfileRefused(f"{count} profiles are given; {_MOST_PROFILES} are taken")
    for name, ranges in given.items():
        if len(ranges) not in (1, count):
            raise ProfileRefused(
                f"input {name!r} is in {len(ranges)} of {count} profiles; give it once for all of them, or {count} times"
            )
    return tuple({name: ranges[index if len(ranges) > 1 else 0] for name, ranges in given.items()} for index in range(count))


def fit_profiles(inputs: Sequence[Tensor], profiles: Sequence[Ranges], max_batch_size: int = 0) -> tuple[Ranges, ...]:
    """Profiles for every input of this network. Raises ProfileRefused.

    Inputs of a fixed shape need none. Where only batches vary, `max_batch_size` stands in for a missing range: from one row to
    that many, tuned for that many.
    """
    known = {tensor.name: tensor for tensor in inputs}
    fitted = []
    for ranges in profiles or ({},):
        if unknown := sorted(ranges.keys() - known.keys()):
            raise ProfileRefused(f"profile: the model has no input {unknown[0]!r}; its inputs are {_inputs(inputs)}")
        for name, wanted in ranges.items():
            _check(known[name], wanted)
        fitted.append({tensor.name: ranges.get(tensor.name) or _assumed(tensor, max_batch_size) for tensor in inputs})
    return tuple(fitted)


def batch_size(inputs: Sequence[Tensor], outputs: Sequence[Tensor], profiles: Sequence[Ranges]) -> int:
    """Rows that one execution takes; 0 = the model has no batch dimension, which every input and output would begin with."""
    if not inputs or any(not tensor.shape or tensor.shape[0] != -1 for tensor in (*inputs, *outputs)):
        return 0
    return max(min(ranges[tensor.name].maximum[0] for tensor in inputs) for ranges in profiles)


def fewest_rows(inputs: Sequence[Tensor], profiles: Sequence[Ranges]) -> int:
    """The least that any profile takes."""
    return min(max(ranges[tensor.name].minimum[0] for tensor in inputs) for ranges in profiles)


def _parse(text: str) -> tuple[str, ShapeRange]:
    name, colon, shapes = text.rpartition(":")  # names of inputs may hold colons themselves
    if not colon or not name:
        raise ProfileRefused(f"profile {text!r} names no input; write it as {EXAMPLE}")
    parts = [_shape(text, part) for part in shapes.split(",")]
    if len(parts) not in (1, 3):
        raise ProfileRefused(f"profile {text!r} has {len(parts)} shapes; give one, or the smallest, the best and the largest")
    wanted = ShapeRange(parts[0], parts[len(parts) // 2], parts[-1])
    if len({len(part) for part in parts}) > 1:
        raise ProfileRefused(f"profile {text!r} has shapes of {', '.join(str(len(part)) for part in parts)} dimensions")
    if not wanted.holds(wanted.optimum) or not ShapeRange(wanted.minimum, wanted.minimum, wanted.maximum).holds(wanted.minimum):
        raise ProfileRefused(f"profile {text!r}: each size has to rise from the smallest to the best to the largest shape")
    return name, wanted


def _shape(text: str, part: str) -> Shape:
    sizes = part.strip().lower().split("x")
    if not all(size.isascii() and size.isdecimal() and len(size) <= 10 for size in sizes):
        raise ProfileRefused(f"profile {text!r}: {part!r} is no shape; write it as 8x3x224x224")
    return tuple(int(size) for size in sizes)


def _check(tensor: Tensor, wanted: ShapeRange) -> None:
    if len(wanted.minimum) != len(tensor.shape):
        raise ProfileRefused(
            f"profile of input {tensor.name!r} has {len(wanted.minimum)} dimensions; the model's has {list(tensor.shape)}"
        )
    for shape in (wanted.minimum, wanted.optimum, wanted.maximum):
        if any(fixed not in (-1, size) for fixed, size in zip(tensor.shape, shape, strict=True)):
            raise ProfileRefused(
                f"profile of input {tensor.name!r} has shape {list(shape)}; the model takes {list(tensor.shape)}, -1 being free"
            )


def _assumed(tensor: Tensor, max_batch_size: int) -> ShapeRange:
    """What needs no profile, or only a batch size."""
    if -1 not in tensor.shape:
        return ShapeRange(tensor.shape, tensor.shape, tensor.shape)
    if max_batch_size < 1 or tensor.shape[0] != -1 or -1 in tensor.shape[1:]:
        raise ProfileRefused(
            f"input {tensor.name!r} has the variable shape {list(tensor.shape)} and no profile; give"
            f" --profile '{_example(tensor)}'"
        )
    largest = (max_batch_size, *tensor.shape[1:])
    return ShapeRange((1, *tensor.shape[1:]), largest, largest)


def _example(tensor: Tensor) -> str:
    shapes = ("x".join(str(size if fixed < 0 else fixed) for fixed in tensor.shape) for size in (1, 8, 32))
    return f"{tensor.name}:{','.join(shapes)}"


def _inputs(inputs: Sequence[Tensor]) -> str:
    return ", ".join(f"{tensor.name!r} {list(tensor.shape)}" for tensor in inputs)
