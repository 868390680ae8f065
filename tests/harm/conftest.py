"""One front door for each file; what one test does to it the next finds it well after."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.harm.front import Front, front_door


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def front(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Front]:
    async with front_door(tmp_path_factory.mktemp("front")) as made:
        yield made
