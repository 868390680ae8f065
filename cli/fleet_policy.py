"""`penstock fleet policy …`: the routing policy as a TOML file and back.

The fields are those of penstock.scheduler.v1.RoutingPolicy. Decides nothing about them: the scheduler checks what a rule says.
"""

from __future__ import annotations

import asyncio
import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import typer
from google.protobuf import json_format
from penstock.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc

from cli.profile import Profile
from cli.tables import console
from runtime.errors import InvalidArgument

_NONE = '# There are no rules yet. One looks like this:\n#\n# [[rules]]\n# name = "interactive first"\n# models = ["chat-*"]\n'


async def show_policy(profile: Profile) -> None:
    async with profile.scheduler_channel() as scheduler:
        request = scheduler_pb2.GetRoutingPolicyRequest()
        policy = (await scheduler_pb2_grpc.FleetServiceStub(scheduler).GetRoutingPolicy(request)).routing_policy
    typer.echo(toml_of(policy), nl=False)


async def set_policy(profile: Profile, file: Path, *, force: bool) -> None:
    """Put the file's rules in force. Raises InvalidArgument."""
    policy = policy_in(await asyncio.to_thread(file.read_bytes), str(file))
    expected = policy.generation if policy.generation and not force else None
    async with profile.scheduler_channel() as scheduler:
        request = scheduler_pb2.SetRoutingPolicyRequest(routing_policy=policy, expected_generation=expected)
        made = (await scheduler_pb2_grpc.FleetServiceStub(scheduler).SetRoutingPolicy(request)).routing_policy
    count = len(made.rules)
    console().print(f"{count} rule{'' if count == 1 else 's'} in force, generation {made.generation}")


def policy_in(raw: bytes, name: str) -> scheduler_pb2.RoutingPolicy:
    """Raises InvalidArgument, which names the file and what is wrong in it."""
    try:
        return json_format.ParseDict(tomllib.loads(raw.decode()), scheduler_pb2.RoutingPolicy())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, json_format.ParseError) as error:
        raise InvalidArgument(f"{name}: {' '.join(str(error).split())}") from error


def toml_of(policy: scheduler_pb2.RoutingPolicy) -> str:
    """As `policy_in` reads it."""
    lines = [f"generation = {policy.generation}", ""]
    for rule in policy.rules:
        lines += ["[[rules]]", *_lines(json_format.MessageToDict(rule, preserving_proto_field_name=True)), ""]
    return "\n".join(lines) + ("" if policy.rules else _NONE)


def _lines(rule: Mapping[str, object]) -> Iterator[str]:
    return (f"{key} = {_value(value)}" for key, value in rule.items())


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(str(key))} = {_value(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_value(each) for each in value) + "]"
    return _quoted(value) if isinstance(value, str) else json.dumps(value)


def _key(name: str) -> str:
    return name if name.isidentifier() and name.isascii() else _quoted(name)


def _quoted(text: str) -> str:
    """TOML's strings are JSON's, but for one character."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
