"""One line of JSON for each request that the edge has finished: who was asked, what came of it, how long it took.

Names every field that is written. Never a header that a key travels in, never a query, never a body: those may hold secrets.
"""

from __future__ import annotations

from types import MappingProxyType

from google.protobuf import struct_pb2
from xds import accesslog_pb2, core_pb2, file_access_log_pb2

from gateway.xds.packing import packed

_FILE = "envoy.access_loggers.file"

FIELDS = MappingProxyType(
    {
        "time": "%START_TIME%",
        "listener": "",
        "request_id": "%REQ(X-REQUEST-ID):128%",
        "traceparent": "%REQ(TRACEPARENT):64%",
        "client": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
        "protocol": "%PROTOCOL%",
        "method": "%REQ(:METHOD):16%",
        "path": "%PATH(NQ:ORIG_OR_PATH):512%",
        "route": "%ROUTE_NAME%",
        "status": "%RESPONSE_CODE%",
        "grpc_status": "%GRPC_STATUS(SNAKE_STRING)%",
        "flags": "%RESPONSE_FLAGS%",
        "details": "%RESPONSE_CODE_DETAILS%",
        "received_bytes": "%BYTES_RECEIVED%",
        "sent_bytes": "%BYTES_SENT%",
        "duration_ms": "%DURATION%",
        "first_byte_ms": "%RESPONSE_DURATION%",
        "upstream": "%UPSTREAM_HOST%",
        "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
    }
)
"""Times in milliseconds since the request's first byte; `flags` are Envoy's, such as UF for a gateway that was not reached."""


def access_logs(path: str, listener: str) -> list[accesslog_pb2.AccessLog]:
    """The log of one listener; none where no path is set. `path`: as Envoy sees it, /dev/stdout for its own output."""
    if not path:
        return []
    line = struct_pb2.Struct()
    line.update({**FIELDS, "listener": listener})
    form = core_pb2.SubstitutionFormatString(json_format=line)
    log = file_access_log_pb2.FileAccessLog(path=path, log_format=form)
    return [accesslog_pb2.AccessLog(name=_FILE, typed_config=packed(log))]
