"""What a model cannot do is refused before it runs, and never left out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from runtime.errors import CapabilityLacking
from runtime.model_traits import CAPABILITIES
from tests.worker.upstreams import chat, chat_spec
from worker.engine import Message, Sampling, TextRequest, ToolUse
from worker.generation.capabilities import check_capabilities
from worker.traits import Traits
from worker.types import ModelSpec

CALLED = (Message("user", "?"), Message("assistant", "", tool_calls_json="[]"))
NEEDS = [
    (chat("a", top_logprobs=0), "logprobs"),
    (chat("a", sampling=Sampling(frequency_penalty=1.0)), "penalties"),
    (chat("a", sampling=Sampling(presence_penalty=-1.0)), "penalties"),
    (chat("a", logit_bias={1: 1.0}), "logit_bias"),
    (chat("a", tool_use=ToolUse("[]")), "tools"),
    (TextRequest(CALLED), "tools"),
    (TextRequest((*CALLED[:1], Message("tool", "2", tool_call_id="c1"))), "tools"),
    (chat("a", tool_use=ToolUse(response_format_json='{"type":"json_object"}')), "json"),
    (chat("a", tool_use=ToolUse(response_format_json='{"type":"json_schema"}')), "json_schema"),
]


def able(*capabilities: str) -> ModelSpec:
    return replace(chat_spec(), traits=Traits(frozenset(capabilities)))


@pytest.mark.parametrize(("request_", "capability"), NEEDS)
def test_each_needs_its_own(request_: TextRequest, capability: str) -> None:
    check_capabilities(able(capability), request_)
    with pytest.raises(CapabilityLacking, match=f"does not have the capability '{capability}'"):
        check_capabilities(able(*(name for name in CAPABILITIES if name != capability)), request_)


def test_a_plain_request_needs_nothing() -> None:
    check_capabilities(able(), chat("a", sampling=Sampling(0.5, 0.9, 3, 7, 0.0, 0.0), max_tokens=3, stop=("x",)))


def test_a_format_that_is_none() -> None:
    with pytest.raises(CapabilityLacking, match="no JSON object"):
        check_capabilities(able(*CAPABILITIES), chat("a", tool_use=ToolUse(response_format_json="[")))
