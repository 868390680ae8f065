"""The error table: one class, one code, one reason; and the way back from the wire."""

import subprocess
import sys

import pytest

from runtime.errors import Code, DataLoss, Internal, PenstockError, ResourceExhausted, error_from_wire


class QueueFullForTest(PenstockError, code=Code.RESOURCE_EXHAUSTED, reason="QUEUE_FULL_FOR_TEST"):
    """A reason that only this module knows."""


def test_known_reason_comes_back_as_its_class() -> None:
    error = error_from_wire(8, "QUEUE_FULL_FOR_TEST", "full", 1.5)
    assert type(error) is QueueFullForTest
    assert (error.message, error.retry_after_s) == ("full", 1.5)


def test_unknown_reason_falls_back_to_the_code() -> None:
    assert type(error_from_wire(15, "SOMETHING_NEWER", "m")) is DataLoss


def test_reason_with_another_code_is_not_believed() -> None:
    assert type(error_from_wire(8, "DATA_LOSS", "m")) is ResourceExhausted


def test_code_outside_the_table_is_internal() -> None:
    assert type(error_from_wire(99, "", "m")) is Internal


def test_a_reason_belongs_to_one_class() -> None:
    with pytest.raises(TypeError, match="taken by"):
        type("Other", (PenstockError,), {}, code=Code.NOT_FOUND, reason="QUEUE_FULL_FOR_TEST")


_EVERYTHING = """
import importlib, pkgutil
for root in ("runtime", "placement", "scheduler", "gateway", "worker", "registry", "cli"):
    package = importlib.import_module(root)
    for found in pkgutil.walk_packages(package.__path__, root + "."):
        if "migrations" not in found.name and not found.name.endswith("__main__"):
            importlib.import_module(found.name)
"""


def test_all_services_fit_into_one_process() -> None:
    """A reason that two of them claim would break whoever imports both."""
    command = [sys.executable, "-c", _EVERYTHING]
    ended = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": ":".join(sys.path)}, check=False)
    assert ended.returncode == 0, ended.stderr
