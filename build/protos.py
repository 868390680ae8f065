"""Writes gen/ from protos/: grpcio stubs with their types, a dataclass-style client, and the descriptor image.

Owns every file under gen/ and nothing else: what it did not write there, it removes. The compilers are those of the interpreter
that runs it, so a pinned environment gives the same bytes on every machine. Generated files are never edited, here or by hand.

    python build/protos.py                 write gen/
    python build/protos.py --check         write nothing; name what differs and exit 1
    python build/protos.py --image PATH    write only the image of the sources, with line numbers, for `buf`
"""

import argparse
import fcntl
import filecmp
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import betterproto2
from google.api import annotations_pb2
from google.protobuf import descriptor_pb2
from google.protobuf.compiler import plugin_pb2

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
GEN = ROOT / "gen"

IMAGE = "penstock.binpb"
"""Under gen/: what Envoy's JSON transcoder reads, and what breaking changes are measured against."""

CLIENT = "penstock_client"

CONTRACT_FOLDERS = ("inference", "penstock")
"""What is ours to promise. The others are subsets of somebody else's contract: they get stubs, no client and no image."""

IMAGE_EXTRAS = ("google/api/httpbody.proto", "google/rpc/error_details.proto", "google/rpc/status.proto")
"""No contract imports the last two, but without them the transcoder answers an error with details with an empty body."""

CLIENT_DROPS = "google/api/annotations.proto"
"""HTTP paths mean nothing to a gRPC client, and importing them would pull descriptor.proto into it."""

CLIENT_RESERVED = frozenset(name for name in dir(betterproto2.Message) if not name.startswith("_"))
"""Fields so named would hide the client's own methods (a field `load` breaks `parse`): they get a `_` there, as keywords do."""


class GenerationFailed(Exception):
    """A compiler refused; its own words went to stderr."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Generate gen/ from protos/.")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="compare only; exit 1 when gen/ is not what protos/ gives")
    mode.add_argument("--image", type=Path, metavar="PATH", help="write only the descriptor image of our contracts to PATH")
    options = parser.parse_args(arguments)
    try:
        if options.image is not None:
            write_image(options.image, source_info=True)
            return 0
        with tempfile.TemporaryDirectory(prefix="penstock-gen-") as folder, alone():
            fresh = Path(folder)
            generate(fresh)
            return report(fresh) if options.check else install(fresh)
    except GenerationFailed as failure:
        print(f"build/protos.py: {failure}", file=sys.stderr)
        return 1


@contextmanager
def alone() -> Iterator[None]:
    """Hold a lock from reading the sources to writing gen/, so that an older run cannot undo a newer one."""
    descriptor = os.open(PROTOS, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def generate(fresh: Path) -> None:
    """Write everything gen/ holds into the empty folder `fresh`."""
    every = sources()
    contracts = sources(*CONTRACT_FOLDERS)
    write_image(fresh / IMAGE, source_info=False)
    serving = [file.name for file in described(every).file if file.service]
    protoc(every, f"--python_out={fresh}", f"--mypy_out=quiet:{fresh}", plugins=("mypy",))
    if serving:
        protoc(serving, f"--grpc_python_out={fresh}", f"--mypy_grpc_out=quiet,only_async:{fresh}", plugins=("mypy_grpc",))
    mark_packages(fresh)
    write_client(fresh / CLIENT, contracts)


def sources(*folders: str) -> list[str]:
    """Every .proto under protos/ (or under the named folders of it), as protoc names them, sorted."""
    found = sorted(path.relative_to(PROTOS).as_posix() for path in PROTOS.rglob("*.proto"))
    return [name for name in found if not folders or name.split("/", 1)[0] in folders]


def write_image(path: Path, *, source_info: bool) -> None:
    """Write our contracts with everything they import as one FileDescriptorSet."""
    names = [*sources(*CONTRACT_FOLDERS), *IMAGE_EXTRAS]
    flags = ["--include_imports", *(["--include_source_info"] if source_info else [])]
    protoc(names, f"--descriptor_set_out={path}", *flags)


def described(names: Iterable[str]) -> descriptor_pb2.FileDescriptorSet:
    """The descriptors of `names` and of all they import, comments included, dependencies first."""
    with tempfile.TemporaryDirectory(prefix="penstock-image-") as folder:
        path = Path(folder) / "image.binpb"
        protoc(names, f"--descriptor_set_out={path}", "--include_imports", "--include_source_info")
        return descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes())


def protoc(names: Iterable[str], *flags: str, plugins: Sequence[str] = ()) -> None:
    includes = [PROTOS, package_folder("grpc_tools") / "_proto", package_folder("google.api").parent.parent]
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        *(f"--proto_path={include}" for include in includes),
        *(f"--plugin=protoc-gen-{plugin}={program(f'protoc-gen-{plugin}')}" for plugin in plugins),
        *flags,
        *names,
    ]
    if subprocess.run(command, check=False, cwd=PROTOS).returncode != 0:
        raise GenerationFailed("protoc refused the sources; the lines above say where. gen/ was left as it is.")


def package_folder(name: str) -> Path:
    """Where an installed package (or namespace package) lies."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise GenerationFailed(f"the Python package {name} is not installed; install requirements/dev.txt")
    return Path(next(iter(spec.submodule_search_locations)))


def program(name: str) -> str:
    """A console script of this interpreter's environment, never one that happens to be on PATH."""
    found = shutil.which(name, path=sysconfig.get_path("scripts"))
    if found is None:
        raise GenerationFailed(f"{name} is not in {sysconfig.get_path('scripts')}; install requirements/dev.txt")
    return found


def mark_packages(fresh: Path) -> None:
    """Make every folder a package, and every top one a typed package."""
    for top in sorted(path for path in fresh.iterdir() if path.is_dir()):
        (top / "py.typed").touch()
        for folder in (top, *(path for path in top.rglob("*") if path.is_dir())):
            (folder / "__init__.py").touch()


def write_client(folder: Path, names: Sequence[str]) -> None:
    """Run the betterproto2 compiler over our contracts, by protoc's plugin protocol (google/protobuf/compiler/plugin.proto)."""
    request = plugin_pb2.CodeGeneratorRequest(
        file_to_generate=names,
        parameter="client_generation=async",
        proto_file=client_files(described(names)),
    )
    plugin = program("protoc-gen-python_betterproto2")
    folder.mkdir()
    done = subprocess.run(
        [plugin],
        input=request.SerializeToString(),
        capture_output=True,
        check=False,
        # It formats with the `ruff` it finds on PATH, by the configuration it finds above the working folder.
        env=os.environ | {"PATH": os.pathsep.join((sysconfig.get_path("scripts"), os.environ.get("PATH", "")))},
        cwd=folder,
    )
    if done.returncode != 0:
        raise GenerationFailed(f"the betterproto2 compiler refused the sources:\n{done.stderr.decode(errors='replace')}")
    response = plugin_pb2.CodeGeneratorResponse.FromString(done.stdout)
    if response.error:
        raise GenerationFailed(f"the betterproto2 compiler refused the sources: {response.error}")
    for file in response.file:
        path = folder / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file.content, encoding="utf-8")


def client_files(image: descriptor_pb2.FileDescriptorSet) -> list[descriptor_pb2.FileDescriptorProto]:
    """The files a client needs: without HTTP annotations, and without the comments of files that are not ours."""
    for file in image.file:
        if file.name.startswith("google/"):
            file.source_code_info.Clear()
            file.source_code_info.SetInParent()  # the compiler wants it present, if empty
        kept = [name for name in file.dependency if name != CLIENT_DROPS]
        del file.dependency[:]
        file.dependency.extend(kept)
        for method in (method for service in file.service for method in service.method):
            method.options.ClearExtension(annotations_pb2.http)
        for field in (field for message in every_message(file.message_type) for field in message.field):
            if field.name in CLIENT_RESERVED:
                field.name += "_"
    return reachable(image)


def every_message(messages: Iterable[descriptor_pb2.DescriptorProto]) -> Iterator[descriptor_pb2.DescriptorProto]:
    for message in messages:
        yield message
        yield from every_message(message.nested_type)


def reachable(image: descriptor_pb2.FileDescriptorSet) -> list[descriptor_pb2.FileDescriptorProto]:
    """Our contracts and what they still import; an image lists a file after its imports, so walk it from the end."""
    wanted = set(sources(*CONTRACT_FOLDERS))
    found = []
    for file in reversed(image.file):
        if file.name in wanted:
            wanted.update(file.dependency)
            found.append(file)
    return found[::-1]


def contents(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }


def differences(fresh: Path) -> list[tuple[str, str]]:
    """What writing gen/ would do, as (what, file), in the order of the names."""
    made, there = contents(fresh), contents(GEN) if GEN.exists() else set()
    changed = {name for name in made & there if not filecmp.cmp(fresh / name, GEN / name, shallow=False)}
    verbs = {
        **dict.fromkeys(made - there, "missing"),
        **dict.fromkeys(there - made, "stale"),
        **dict.fromkeys(changed, "differs"),
    }
    return sorted(((verb, name) for name, verb in verbs.items()), key=lambda found: found[1])


def report(fresh: Path) -> int:
    found = differences(fresh)
    for verb, name in found:
        print(f"{verb}: gen/{name}")
    if found:
        print(f"{len(found)} generated files are not what protos/ gives: run python build/protos.py and commit gen/")
        return 1
    print(f"gen/ is what protos/ gives: {len(contents(fresh))} files compared")
    return 0


def install(fresh: Path) -> int:
    """Bring gen/ to what `fresh` holds, touching only what differs; each file appears whole."""
    found = differences(fresh)
    for verb, name in found:
        target = GEN / name
        if verb == "stale":
            target.unlink()
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.copyfile(fresh / name, partial)
        partial.replace(target)
    remove_empty_folders()
    print(f"gen/: {len(contents(fresh))} files, {len(found)} written or removed")
    return 0


def remove_empty_folders() -> None:
    """Remove the folders under gen/ that hold nothing but bytecode."""
    for folder in sorted((path for path in GEN.rglob("*") if path.is_dir()), reverse=True):
        if folder.name != "__pycache__" and not contents(folder):
            shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
