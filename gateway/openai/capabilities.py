"""What a request needs a model to be able to do, and whether it can. Pure: copies say of themselves what they can.

A request that asks for more than a model does is refused and never answered with less.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from gateway.openai.errors import RequestRefused
from gateway.openai.types import TextAsked
from placement.types import Copy
from runtime.model_traits import JSON, JSON_SCHEMA, LOGIT_BIAS, LOGPROBS, PENALTIES, TOOLS


def needs_of(asked: TextAsked) -> Mapping[str, str]:
    """By capability: the parameter that asks for it."""
    needs: dict[str, str] = {}
    sampling, use = asked.sampling, asked.tool_use
    if asked.top_logprobs is not None:
        needs[LOGPROBS] = "logprobs"
    if sampling.frequency_penalty is not None or sampling.presence_penalty is not None:
        needs[PENALTIES] = "presence_penalty" if sampling.frequency_penalty is None else "frequency_penalty"
    if asked.logit_bias:
        needs[LOGIT_BIAS] = "logit_bias"
    if use.tools_json:
        needs[TOOLS] = "tools"
    elif (turn := _tool_turn(asked)) is not None:
        needs[TOOLS] = f"messages[{turn}]"
    if use.response_format_json:
        needs[JSON_SCHEMA if json.loads(use.response_format_json)["type"] == "json_schema" else JSON] = "response_format"
    return needs


def check_capabilities(model: str, needs: Mapping[str, str], copies: Iterable[Copy]) -> None:
    """Raises RequestRefused where none of these copies can do all of it. Of a model without copies nobody knows yet."""
    known = [copy.capabilities for copy in copies]
    if not known or any(needs.keys() <= each for each in known):
        return
    able = max(known, key=lambda each: (len(needs.keys() & each), sorted(each)))
    lacking, param = next((name, param) for name, param in needs.items() if name not in able)
    raise RequestRefused(
        f"model {model[:80]!r} does not have the capability {lacking!r}, which {param!r} asks for; leave {param!r} out, or ask"
        " a model that has it",
        param=param,
        fault="unsupported_parameter",
    )


def _tool_turn(asked: TextAsked) -> int | None:
    """The first turn that speaks of tools."""
    for prompt in asked.prompts:
        if not isinstance(prompt, str):
            for index, turn in enumerate(prompt):
                if turn.tool_calls_json or turn.tool_call_id:
                    return index
    return None
