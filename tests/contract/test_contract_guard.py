"""The guard over the contracts reports what it exists for: a broken name, a broken caller, and nothing where all is well."""

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

ROOT = Path(__file__).resolve().parents[2]
WORKER = "penstock/worker/v1/worker.proto"


@pytest.fixture(scope="module")
def contracts() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_contracts", ROOT / "build" / "contracts.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def image(contracts: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "now.binpb"
    contracts.build_image(path)
    return path


def changed(image: Path, folder: Path, change: Callable[[FileDescriptorProto], None]) -> Path:
    files = FileDescriptorSet.FromString(image.read_bytes())
    change(next(file for file in files.file if file.name == WORKER))
    path = folder / "changed.binpb"
    path.write_bytes(files.SerializeToString())
    return path


def renumber_a_field(file: FileDescriptorProto) -> None:
    file.message_type[0].field[0].number = 99


def drop_a_call(file: FileDescriptorProto) -> None:
    del file.service[0].method[-1]


def drop_a_message_nothing_uses(file: FileDescriptorProto) -> None:
    del next(message for message in file.message_type if message.name == "GenerateResponse").field[-1]


def misname_a_field(file: FileDescriptorProto) -> None:
    file.message_type[0].field[0].name = "BadName"


def misname_a_service(file: FileDescriptorProto) -> None:
    file.service[0].name = "Worker"


@pytest.mark.parametrize("change", [renumber_a_field, drop_a_call, drop_a_message_nothing_uses])
def test_a_change_that_breaks_callers_is_reported(
    contracts: ModuleType,
    image: Path,
    tmp_path: Path,
    change: Callable[[FileDescriptorProto], None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    after = changed(image, tmp_path, change)
    rules = ("--config", contracts.RULES, "--against-config", contracts.RULES, *contracts.NOT_OURS)
    assert not contracts.buf("breaking", after, "--against", image, *rules)
    assert WORKER in capfd.readouterr().out


@pytest.mark.parametrize("change", [misname_a_field, misname_a_service])
def test_a_name_against_the_rules_is_reported(
    contracts: ModuleType,
    image: Path,
    tmp_path: Path,
    change: Callable[[FileDescriptorProto], None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    after = changed(image, tmp_path, change)
    assert not contracts.buf("lint", after, "--config", contracts.RULES, *contracts.NOT_OURS)
    assert WORKER in capfd.readouterr().out


def test_the_contracts_keep_their_rules(contracts: ModuleType) -> None:
    assert contracts.main(["lint"]) == 0


def test_the_guard_compares_with_what_a_commit_carries(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for folder in ("protos", "build", "gen"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__", ".*"))

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False, timeout=60)

    check = (sys.executable, "build/contracts.py", "breaking")
    git = ("git", "-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "commit.gpgsign=false")
    assert run("git", "init", "--quiet", "--initial-branch=main").returncode == 0
    assert run(*git, "add", "--all").returncode == 0
    assert run(*git, "commit", "--quiet", "--message", "first").returncode == 0
    assert run(*check).returncode == 0

    worker = tree / "protos" / WORKER
    worker.write_text(worker.read_text().replace("uint64 grace_ms = 1;", "uint64 grace_ms = 2;"))
    reported = run(*check)
    assert reported.returncode == 1
    assert "DrainRequest" in reported.stdout
