"""Both stubs of our contracts write the same bytes and read each other's: grpcio's classes and the betterproto2 client's.

Every message of every contract is filled at random, by walking its descriptor; nothing here names a field.
"""

import importlib
import math
import pkgutil
import random
from collections.abc import Iterator
from typing import Any

import betterproto2
import inference
import penstock
import penstock_client
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

DEPTH = 3
"""How deep messages are filled; further down they are present and empty."""

OUT_OF_ORDER = {"inference.ModelConfig", "inference.ModelConfigResponse"}

Tree = dict[int, object]
"""A message as neither stub has it: field number to value; a list for repeated fields, a dict for maps, a Tree for messages."""

FILLINGS = 40
"""Of each message, from fixed seeds: the same on every run."""

SCALARS: dict[int, tuple[object, ...]] = {
    FieldDescriptor.TYPE_DOUBLE: (0.0, 1.0, -1.5, 0.1, 5e-324, 1.7976931348623157e308, math.inf, -math.inf),
    FieldDescriptor.TYPE_FLOAT: (0.0, 1.0, -1.5, 2.0**-149, 2.0**127, math.inf, -math.inf),
    FieldDescriptor.TYPE_INT64: (0, 1, -1, 127, 128, -(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_SINT64: (0, 1, -1, 63, 64, -64, -65, -(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 1, 127, 128, 2**63, 2**64 - 1),
    FieldDescriptor.TYPE_INT32: (0, 1, -1, 127, 128, -(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 1, 127, 128, 2**31, 2**32 - 1),
    FieldDescriptor.TYPE_BOOL: (False, True),
    FieldDescriptor.TYPE_STRING: ("", "a", "größer → 水", "\x00", "x" * 200),
    FieldDescriptor.TYPE_BYTES: (b"", b"\x00", bytes(range(256))),
}
"""Values at the edges of each type. Without -0.0, which betterproto2 takes for 0.0 and leaves out; neither is it ever meant."""


def stub_modules() -> Iterator[str]:
    for package in (inference, penstock):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if module.name.endswith("_pb2"):
                yield module.name


def with_nested(descriptor: Descriptor) -> Iterator[Descriptor]:
    if not descriptor.GetOptions().map_entry:
        yield descriptor
        for nested in descriptor.nested_types:
            yield from with_nested(nested)


def contract_messages() -> dict[str, Descriptor]:
    modules = [importlib.import_module(name) for name in stub_modules()]
    tops = [top for module in modules for top in module.DESCRIPTOR.message_types_by_name.values()]
    return {descriptor.full_name: descriptor for top in tops for descriptor in with_nested(top)}


def client_classes() -> dict[str, type[betterproto2.Message]]:
    for module in pkgutil.walk_packages(penstock_client.__path__, f"{penstock_client.__name__}."):
        importlib.import_module(module.name)
    pool = importlib.import_module("penstock_client.message_pool").default_message_pool
    return {url.rpartition("/")[2]: found for url, found in pool.url_to_type.items()}


DESCRIPTORS = contract_messages()
CLIENT_CLASSES = client_classes()


def tree_of(descriptor: Descriptor, draw: random.Random, depth: int = DEPTH) -> Tree:
    """Some filling of a message: each field set or not, at most one field of each oneof."""
    if depth == 0:
        return {}
    chosen = [field for field in descriptor.fields if field.containing_oneof is None and draw.random() < 0.6]
    chosen += [draw.choice(oneof.fields) for oneof in descriptor.oneofs if draw.random() < 0.8]
    return {field.number: value_of(field, draw, depth) for field in chosen}


def value_of(field: FieldDescriptor, draw: random.Random, depth: int) -> object:
    if is_map(field):
        key, value = inner(field).fields
        # One entry: the order of several is nobody's promise.
        return {one_of(key, draw, depth): one_of(value, draw, depth)}
    if field.is_repeated:
        return [one_of(field, draw, depth) for _ in range(draw.randrange(4))]
    return one_of(field, draw, depth)


def one_of(field: FieldDescriptor, draw: random.Random, depth: int) -> object:
    if field.message_type is not None:
        return tree_of(field.message_type, draw, depth - 1)
    if field.enum_type is not None:
        return draw.choice([value.number for value in field.enum_type.values])
    return draw.choice(SCALARS[field.type])


def inner(field: FieldDescriptor) -> Descriptor:
    assert field.message_type is not None
    return field.message_type


def is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def as_grpcio(descriptor: Descriptor, tree: Tree) -> Message:
    message = GetMessageClass(descriptor)()
    fill(message, descriptor, tree)
    return message


def fill(message: Message, descriptor: Descriptor, tree: Tree) -> None:
    for field in (field for field in descriptor.fields if field.number in tree):
        value: Any = tree[field.number]
        target = getattr(message, field.name)
        if is_map(field):
            entry = inner(field).fields_by_name["value"]
            for key, found in value.items():
                if entry.message_type is None:
                    target[key] = found
                else:
                    fill(target[key], entry.message_type, found)
        elif field.message_type is None:
            if field.is_repeated:
                target.extend(value)
            else:
                setattr(message, field.name, value)
        elif field.is_repeated:
            for found in value:
                fill(target.add(), field.message_type, found)
        else:
            target.SetInParent()
            fill(target, field.message_type, value)


def as_client(descriptor: Descriptor, tree: Tree) -> betterproto2.Message:
    found: Any = CLIENT_CLASSES[descriptor.full_name]
    names = {meta.number: name for name, meta in found()._betterproto.meta_by_field_name.items()}
    fields = {field.number: field for field in descriptor.fields}
    made = found(**{names[number]: client_value(fields[number], value) for number, value in tree.items()})
    assert isinstance(made, betterproto2.Message)
    return made


def client_value(field: FieldDescriptor, value: Any) -> object:
    if is_map(field):
        entry = inner(field).fields_by_name["value"]
        return {key: client_value(entry, found) for key, found in value.items()}
    if field.message_type is None:
        return value
    if field.is_repeated:
        return [as_client(field.message_type, found) for found in value]
    return as_client(field.message_type, value)


def test_the_client_has_every_message() -> None:
    assert sorted(DESCRIPTORS.keys() - CLIENT_CLASSES.keys()) == []
    assert len(DESCRIPTORS) > 100


def in_order(descriptor: Descriptor) -> bool:
    """Whether fields are declared by ascending number, all the way down. No contract of ours is recursive."""
    numbers = [field.number for field in descriptor.fields]
    below = [field.message_type for field in descriptor.fields if field.message_type is not None]
    return numbers == sorted(numbers) and all(in_order(message) for message in below)


def test_the_order_of_fields_differs_only_where_the_contract_forces_it() -> None:
    # grpcio writes by number, betterproto2 as declared. Triton's oneof over 11, 13 and 15 has 12 and 14 in between.
    assert {name for name, found in DESCRIPTORS.items() if not in_order(found)} == OUT_OF_ORDER


@pytest.mark.parametrize("name", sorted(DESCRIPTORS))
def test_both_write_the_same_bytes_and_read_each_others(name: str) -> None:
    descriptor = DESCRIPTORS[name]
    draw = random.Random(name)
    for _ in range(FILLINGS):
        tree = tree_of(descriptor, draw)
        ours, theirs = as_grpcio(descriptor, tree), as_client(descriptor, tree)
        written = ours.SerializeToString(deterministic=True)
        if name not in OUT_OF_ORDER:
            assert bytes(theirs) == written, tree
        assert len(bytes(theirs)) == len(written), tree
        assert type(ours).FromString(bytes(theirs)) == ours, tree
        assert type(theirs).parse(written) == theirs, tree


def test_what_is_not_set_is_told_from_what_is_zero() -> None:
    found = DESCRIPTORS["penstock.worker.v1.Sampling"]
    zeros: Tree = {field.number: 0 for field in found.fields}
    assert bytes(as_client(found, zeros)) == as_grpcio(found, zeros).SerializeToString() != b""
    assert bytes(as_client(found, {})) == as_grpcio(found, {}).SerializeToString() == b""
