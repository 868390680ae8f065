"""Values into Envoy's wrappers: Any, durations, optional numbers, addresses."""

from __future__ import annotations

from pathlib import Path

from google.protobuf import any_pb2, duration_pb2, message, wrappers_pb2
from xds import core_pb2

from gateway.xds.types import Endpoint


def packed(inner: message.Message) -> any_pb2.Any:
    """The message in an Any; the same message gives the same bytes."""
    outer = any_pb2.Any()
    outer.Pack(inner, deterministic=True)
    return outer


def seconds(length_s: float) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromMilliseconds(round(length_s * 1000))
    return duration


def number(value: int) -> wrappers_pb2.UInt32Value:
    return wrappers_pb2.UInt32Value(value=value)


def flag(value: bool) -> wrappers_pb2.BoolValue:
    return wrappers_pb2.BoolValue(value=value)


def socket(endpoint: Endpoint) -> core_pb2.Address:
    return core_pb2.Address(socket_address=core_pb2.SocketAddress(address=endpoint.host, port_value=endpoint.port))


def over_ads() -> core_pb2.ConfigSource:
    """The rest of the configuration comes over the one stream."""
    return core_pb2.ConfigSource(ads=core_pb2.AggregatedConfigSource(), resource_api_version=core_pb2.V3)


def from_file(path: Path) -> core_pb2.ConfigSource:
    """It lies in a file, a path where Envoy runs."""
    return core_pb2.ConfigSource(path_config_source=core_pb2.PathConfigSource(path=str(path)), resource_api_version=core_pb2.V3)
