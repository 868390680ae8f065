"""The inference contract is Triton's, field by field: ours is compared with the descriptors that tritonclient ships.

Two files that declare one package cannot share a process, so the client's are read in a process of their own.
"""

import base64
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)
from inference import grpc_service_pb2, model_config_pb2

DUMP = """
import base64, sys
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from tritonclient.grpc import model_config_pb2, service_pb2
files = FileDescriptorSet()
for module in (model_config_pb2, service_pb2):
    module.DESCRIPTOR.CopyToProto(files.file.add())
sys.stdout.write(base64.b64encode(files.SerializeToString()).decode())
"""

Facts = dict[str, str]
"""What a contract states: the full name of each thing in it, and all that is said of it but where it is written."""


@pytest.fixture(scope="module")
def theirs() -> Facts:
    # -I: neither our sources nor our stubs are on its path.
    done = subprocess.run([sys.executable, "-I", "-c", DUMP], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return facts(FileDescriptorSet.FromString(base64.b64decode(done.stdout)).file)


@pytest.fixture(scope="module")
def ours() -> Facts:
    return facts(our_files())


def our_files() -> list[FileDescriptorProto]:
    files = []
    for module in (model_config_pb2, grpc_service_pb2):
        file = FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(file)
        files.append(file)
    return files


def facts(files: Iterable[FileDescriptorProto]) -> Facts:
    found: Facts = {}
    for file in files:
        found["syntax"] = file.syntax
        for enum in file.enum_type:
            found.update(of_enum(file.package, enum))
        for message in file.message_type:
            found.update(of_message(file.package, message))
        for service in file.service:
            for method in service.method:
                streams = f"client_streaming={method.client_streaming} server_streaming={method.server_streaming}"
                found[f"rpc {file.package}.{service.name}/{method.name}"] = (
                    f"{method.input_type} → {method.output_type} {streams}"
                )
    return found


def of_message(scope: str, message: DescriptorProto) -> Iterator[tuple[str, str]]:
    name = f"{scope}.{message.name}"
    yield f"message {name}", f"map_entry={message.options.map_entry} deprecated={message.options.deprecated}"
    for reserved in message.reserved_range:
        yield f"reserved {name} {reserved.start} to {reserved.end}", ""
    for field in message.field:
        yield f"field {name}.{field.name}", of_field(message, field)
    for enum in message.enum_type:
        yield from of_enum(name, enum)
    for nested in message.nested_type:
        yield from of_message(name, nested)


def of_field(message: DescriptorProto, field: FieldDescriptorProto) -> str:
    oneof = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else "none"
    kind = FieldDescriptorProto.Type.Name(field.type)
    label = FieldDescriptorProto.Label.Name(field.label)
    options = base64.b64encode(field.options.SerializeToString(deterministic=True)).decode()
    return (
        f"number={field.number} {label} {kind} {field.type_name} oneof={oneof} optional={field.proto3_optional} "
        f"json={field.json_name} default={field.default_value!r} options={options!r}"
    )


def of_enum(scope: str, enum: EnumDescriptorProto) -> Iterator[tuple[str, str]]:
    name = f"{scope}.{enum.name}"
    yield f"enum {name}", f"alias={enum.options.allow_alias}"
    for value in enum.value:
        yield f"value {name}.{value.name}", f"number={value.number}"


def test_ours_says_all_that_theirs_says(ours: Facts, theirs: Facts) -> None:
    assert {name: said for name, said in theirs.items() if ours.get(name) != said} == {}


def test_ours_says_nothing_that_theirs_does_not(ours: Facts, theirs: Facts) -> None:
    assert {name: said for name, said in ours.items() if theirs.get(name) != said} == {}


@pytest.mark.parametrize(
    ("kind", "at_least"),
    [("rpc", 20), ("message", 100), ("field", 300), ("enum", 8), ("value", 39)],
)
def test_the_comparison_covers_the_whole_contract(theirs: Facts, kind: str, at_least: int) -> None:
    assert len([name for name in theirs if name.startswith(f"{kind} ")]) >= at_least


def renumber(file: FileDescriptorProto) -> None:
    file.message_type[0].field[1].number += 1


def rename(file: FileDescriptorProto) -> None:
    file.message_type[0].field[1].name += "_"


def retype(file: FileDescriptorProto) -> None:
    file.message_type[0].field[1].type = FieldDescriptorProto.TYPE_BYTES


def repeat(file: FileDescriptorProto) -> None:
    file.message_type[0].field[1].label = FieldDescriptorProto.LABEL_REPEATED


def revalue(file: FileDescriptorProto) -> None:
    file.enum_type[0].value[1].number += 100


def drop(file: FileDescriptorProto) -> None:
    del file.message_type[-1]


@pytest.mark.parametrize("change", [renumber, rename, retype, repeat, revalue, drop])
def test_a_changed_contract_is_seen(change: Callable[[FileDescriptorProto], None], theirs: Facts) -> None:
    files = our_files()
    change(files[0])
    assert facts(files) != theirs


@pytest.mark.parametrize("flag", ["client_streaming", "server_streaming"])
def test_a_changed_streaming_flag_is_seen(flag: str, theirs: Facts) -> None:
    files = our_files()
    method = files[1].service[0].method[0]
    setattr(method, flag, not getattr(method, flag))
    assert facts(files) != theirs
