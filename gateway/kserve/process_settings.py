"""Trace and log settings as Triton's clients ask for them: told as they are, changed only to what they are.

How the processes of a mesh trace and log is said when they start. To set what holds anyway, and to clear a setting to the
mesh's own, changes nothing and is let through: clients do both.
"""

from __future__ import annotations

from collections.abc import Mapping

from inference import grpc_service_pb2 as pb

from runtime.errors import InvalidArgument

TRACING: Mapping[str, tuple[str, ...]] = {
    "trace_level": ("OFF",),
    "trace_rate": ("1000",),
    "trace_count": ("-1",),
    "log_frequency": ("0",),
    "trace_file": ("",),
    "trace_mode": ("opentelemetry",),
}
LOGGING: Mapping[str, bool | int | str] = {
    "log_file": "",
    "log_info": True,
    "log_warning": True,
    "log_error": True,
    "log_verbose_level": 0,
    "log_format": "default",
}


def checked_tracing(settings: Mapping[str, pb.TraceSettingRequest.SettingValue]) -> pb.TraceSettingResponse:
    """What holds. Raises InvalidArgument for settings that would change it."""
    wanted = {name: tuple(setting.value) for name, setting in settings.items()}
    _refuse(
        "trace",
        TRACING,
        [name for name, value in wanted.items() if name not in TRACING or (value and value != TRACING[name])],
        "start the process with an OTLP endpoint to trace",
    )
    values = pb.TraceSettingResponse.SettingValue
    return pb.TraceSettingResponse(settings={name: values(value=value) for name, value in TRACING.items()})


def checked_logging(settings: Mapping[str, pb.LogSettingsRequest.SettingValue]) -> pb.LogSettingsResponse:
    """Likewise."""
    changed = []
    for name, setting in settings.items():
        choice = setting.WhichOneof("parameter_choice")
        value = None if choice is None else getattr(setting, choice)
        if name not in LOGGING or type(value) is not type(LOGGING[name]) or value != LOGGING[name]:
            changed.append(name)
    _refuse("log", LOGGING, changed, "set the log level when starting the process")
    values = pb.LogSettingsResponse.SettingValue
    told = {}
    for name, held in LOGGING.items():
        if isinstance(held, bool):
            told[name] = values(bool_param=held)
        elif isinstance(held, int):
            told[name] = values(uint32_param=held)
        else:
            told[name] = values(string_param=held)
    return pb.LogSettingsResponse(settings=told)


def _refuse(kind: str, known: Mapping[str, object], changed: list[str], instead: str) -> None:
    if unknown := sorted(set(changed) - known.keys()):
        raise InvalidArgument(f"{kind} setting {unknown[0][:80]!r} is not known; there are: {', '.join(known)}")
    if changed:
        raise InvalidArgument(f"{kind} settings {sorted(changed)} cannot be changed while the mesh runs; {instead}")
