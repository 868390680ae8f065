"""Which services a descriptor set lets Envoy speak as JSON. Reads contracts, never a request."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from google.api import annotations_pb2
from google.protobuf import descriptor_pb2

from runtime.errors import Code, PenstockError

_FILE = "penstock.binpb"


class DescriptorSetMissing(PenstockError, code=Code.FAILED_PRECONDITION, reason="DESCRIPTOR_SET_MISSING"):
    """The contracts were not generated, or not installed."""


def load_descriptor_set() -> bytes:
    """The mesh's own contracts: beside this module where installed, under gen/ in a checkout."""
    installed = Path(str(resources.files(__package__))) / _FILE
    checkout = installed.parents[2] / "gen" / _FILE
    for file in (installed, checkout):
        if file.is_file():
            return file.read_bytes()
    raise DescriptorSetMissing(f"neither {installed} nor {checkout} exists; run `python build/protos.py`, or install the wheel")


DIRECT = ("penstock.gateway.v1.OpenAIService", "penstock.gateway.v1.InferenceRestService")
"""Whose bodies are HTTP's own: they need no transcoding, and go to the gateways as they come."""

OFFERED = ("penstock.gateway.", "penstock.scheduler.v1.JobService")
"""What a gateway serves to applications: all of its own package, and jobs, which it hands on to the schedulers."""


def annotated_services(descriptor_set: bytes, packages: tuple[str, ...] = OFFERED) -> tuple[str, ...]:
    """Full names of the services with at least one HTTP path, of these names or beginning with them.

    The default leaves out inner services: their contracts carry paths too, and an edge must not offer them by accident.
    """
    files = descriptor_pb2.FileDescriptorSet.FromString(descriptor_set).file
    found = {name for file in files for name, _ in _paths(file)}
    return tuple(sorted(name for name in found if name.startswith(packages)))


def http_prefixes(descriptor_set: bytes, services: tuple[str, ...]) -> tuple[str, ...]:
    """What the HTTP paths of these services begin with, "/v1/" for one."""
    files = descriptor_pb2.FileDescriptorSet.FromString(descriptor_set).file
    paths = (path for file in files for name, path in _paths(file) if name in services)
    return tuple(sorted({f"/{path.split('/')[1]}/" for path in paths}))


def direct_paths(descriptor_set: bytes, services: tuple[str, ...]) -> tuple[str, ...]:
    """What the HTTP paths of these services are, or begin with where they end in a slash: whole segments, two at most."""
    files = descriptor_pb2.FileDescriptorSet.FromString(descriptor_set).file
    paths = [path.split("/")[1:] for file in files for name, path in _paths(file) if name in services]
    roots = {(segments[0],) if segments[0] == "v2" else tuple(segments[:2]) for segments in paths}
    return tuple(path for root in sorted(roots) for path in (f"/{'/'.join(root)}", f"/{'/'.join(root)}/"))


def _paths(file: descriptor_pb2.FileDescriptorProto) -> Iterator[tuple[str, str]]:
    for service in file.service:
        for method in service.method:
            rule = method.options.Extensions[annotations_pb2.http]
            for one in (rule, *rule.additional_bindings):
                pattern = one.WhichOneof("pattern")
                if pattern is not None and pattern != "custom":
                    yield f"{file.package}.{service.name}", getattr(one, pattern)
