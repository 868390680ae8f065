"""The region of a request at the OpenAI door."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from gateway.regions import HEADER
from tests.gateway.openai.mesh import Served, served, small_mesh
from tests.gateway.openai.test_servicer import CHAT, COMPLETION, EMBEDDINGS, chat

BODIES = {
    CHAT: chat(),
    COMPLETION: json.dumps({"model": "words", "prompt": "2 + 2 ="}).encode(),
    EMBEDDINGS: b'{"model":"vectors","input":["a","b"]}',
}


@pytest.fixture
async def service() -> AsyncIterator[Served]:
    async with served(small_mesh()) as running:
        yield running


@pytest.mark.parametrize("method", BODIES)
async def test_a_request_is_from_the_region_that_its_caller_says(service: Served, method: str) -> None:
    for named, region in (((), "local"), (((HEADER, "asia"),), "asia")):
        assert (await service.post(method, BODIES[method], *named)).status == 200
        assert {each.region for each in service.mesh.router.requests} == {region}
        service.mesh.router.requests.clear()


async def test_a_region_that_nobody_knows_is_refused(service: Served) -> None:
    answered = await service.post(CHAT, chat(), (HEADER, "atlantis"))
    assert answered.status == 400
    assert "atlantis" in answered.text
    assert not service.mesh.router.requests
