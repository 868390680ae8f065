"""Any order of uploads, publications, kills and the single steps of collections: nothing that is needed is ever lost.

Each step is one transaction, or one operation of the store, as two replicas' interleave. What a model of the world holds:
all that a version names can be read; an upload that was gone on with can be completed; what a tenant was told it has, it can
publish while its grace lasts; and in the end, when time has passed, nothing is left in the store that no row names.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from registry.access.types import ActorKind
from registry.audit.types import AuditNote
from registry.files.collection import Collected, judged
from registry.files.errors import UploadIncomplete, UploadUnknown
from registry.files.types import DAY_MS, Begun, object_id_in, object_prefix
from registry.files.uploads import drop_object
from runtime.ids import Digest
from runtime.sealed_chunks import CHUNK_BYTES, OVERHEAD_BYTES
from tests.registry.files.rig import LIMITS, Rig, content_of, rig_on, sha256_of, upload_id_of
from tests.registry.harness import ground_on

CONTENTS = [content_of(CHUNK_BYTES + 10, seed) for seed in range(3)]
WHICH = st.integers(0, len(CONTENTS) - 1)
TENANTS = st.sampled_from(["acme", "globex"])
NOTE = AuditNote(ActorKind.NOBODY, "test", "collect", "x")
T = TypeVar("T")


class Files(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = Path(tempfile.mkdtemp(prefix="penstock-files-"))
        self.stack = AsyncExitStack()
        self.rig: Rig = self.run(self.opened())
        self.uploads: dict[tuple[str, int], Begun] = {}
        """Begun and not ended, as their senders believe."""
        self.had_at_ms: dict[tuple[str, int], int] = {}
        """When a tenant was last told that it has the file."""
        self.published: set[int] = set()
        self.candidates: list[Digest] = []
        self.loose: list[bytes] = []
        """Objects whose rows are gone; a kill forgets them."""

    async def opened(self) -> Rig:
        ground = await self.stack.enter_async_context(ground_on(str(self.folder / "registry.db")))
        ground.clock.now_s = 4_000_000_000.0  # objects bear the machine's time, and are old at once
        return rig_on(ground, self.folder / "objects", replace(LIMITS, upload_lifetime_ms=3 * DAY_MS))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def teardown(self) -> None:
        self.run(self.everything_goes_in_the_end())
        self.run(self.stack.aclose())
        self.runner.close()
        shutil.rmtree(self.folder)

    @property
    def now_ms(self) -> int:
        return int(self.rig.ground.clock.now_s * 1000)

    @rule(tenant=TENANTS, which=WHICH)
    def say_again(self, tenant: str, which: int) -> None:
        """Shortly before the grace of what it has is over, or after."""
        if (tenant, which) in self.had_at_ms:
            self.rig.later(days=1.1)
            self.begin(tenant, which)

    @rule(tenant=TENANTS, which=WHICH)
    def begin(self, tenant: str, which: int) -> None:
        begun = self.run(self.rig.begin(CONTENTS[which], tenant))
        if begun.complete:
            self.had_at_ms[tenant, which] = self.now_ms
            self.uploads.pop((tenant, which), None)
        else:
            self.uploads[tenant, which] = begun

    @rule(tenant=TENANTS, which=WHICH)
    def upload(self, tenant: str, which: int) -> None:
        self.run(self.rig.upload(CONTENTS[which], tenant))
        self.had_at_ms[tenant, which] = self.now_ms
        self.uploads.pop((tenant, which), None)

    @precondition(lambda self: self.uploads)
    @rule(data=st.data(), number=st.integers(0, 1))
    def send(self, data: st.DataObject, number: int) -> None:
        tenant, which = data.draw(st.sampled_from(sorted(self.uploads)))
        try:
            self.run(self.rig.send(self.uploads[tenant, which], CONTENTS[which], number, tenant=tenant))
        except UploadUnknown:
            del self.uploads[tenant, which]

    @precondition(lambda self: self.uploads)
    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        tenant, which = data.draw(st.sampled_from(sorted(self.uploads)))
        try:
            self.run(self.rig.complete(self.uploads[tenant, which], tenant))
        except UploadIncomplete:
            return
        except UploadUnknown:
            pass
        else:
            self.had_at_ms[tenant, which] = self.now_ms
        del self.uploads[tenant, which]

    @precondition(lambda self: self.uploads)
    @rule(data=st.data())
    def finish_without_deleting(self, data: st.DataObject) -> None:
        """A completion that is killed after its transaction."""
        tenant, which = data.draw(st.sampled_from(sorted(self.uploads)))
        upload_id = upload_id_of(self.uploads[tenant, which])
        if len(self.run(self.rig.store.received(upload_id))) == 2:
            self.run(self.rig.store.finish(upload_id, NOTE, self.now_ms))
            self.had_at_ms[tenant, which] = self.now_ms
            del self.uploads[tenant, which]

    @rule(tenant=TENANTS, which=WHICH, now=st.sampled_from([True, False, False, False]))
    def publish(self, tenant: str, which: int, now: bool) -> None:
        """Within the grace after it was told of the file, this cannot fail. Seldom: what is published stays for ever."""
        if now and self.now_ms - self.had_at_ms.get((tenant, which), -DAY_MS * 9) <= LIMITS.grace_ms:
            self.run(self.rig.publish(CONTENTS[which], tenant=tenant))
            self.published.add(which)

    @rule(days=st.sampled_from([0.4, 1.1, 2.0]))
    def pass_time(self, days: float) -> None:
        self.rig.later(days)

    # The steps of a collection, taken one by one.

    @rule()
    def look_for_candidates(self) -> None:
        self.candidates = list(self.run(self.rig.collection.candidates(self.now_ms - LIMITS.grace_ms, Digest(""))))

    @precondition(lambda self: self.candidates)
    @rule()
    def judge_one(self) -> None:
        judge = partial(judged, now_ms=self.now_ms, limits=self.rig.limits)
        freed = self.run(self.rig.collection.judge(self.candidates.pop(), judge, NOTE))
        if freed is not None:
            self.loose.append(freed[0])

    @precondition(lambda self: self.loose)
    @rule()
    def delete_one(self) -> None:
        self.run(drop_object(self.rig.objects, self.loose.pop()))

    @rule()
    def be_killed(self) -> None:
        self.candidates, self.loose = [], []

    @rule()
    def collect(self) -> None:
        self.run(self.rig.files.garbage.collect())

    @invariant()
    def what_is_needed_can_be_read(self) -> None:
        promised = {which for (_, which), at_ms in self.had_at_ms.items() if self.now_ms - at_ms <= LIMITS.grace_ms}
        for which in self.published | promised:
            assert self.run(self.is_whole(which)), f"file {which} is named by a version or promised to a tenant, and is lost"

    @invariant()
    def what_was_gone_on_with_is_there(self) -> None:
        for (_, which), begun in self.uploads.items():
            assert begun.upload is not None
            known = self.run(self.rig.store.upload(begun.upload.upload_id))
            if known is not None and known.touched_at_ms >= self.now_ms - self.rig.limits.upload_lifetime_ms:
                for number in self.run(self.rig.store.received(known.upload_id)):
                    self.run(self.rig.objects.get(f"{object_prefix(known.object_id)}{number}", 0, 10))
            assert len(CONTENTS[which]) == begun.upload.layout.size_bytes

    async def is_whole(self, which: int) -> bool:
        file = await self.rig.store.file(Digest(sha256_of(CONTENTS[which])))
        if file is None:
            return False
        for number, size_bytes in enumerate((CHUNK_BYTES, 10)):
            await self.rig.objects.get(f"{object_prefix(file.object_id)}{number}", 0, size_bytes + OVERHEAD_BYTES)
        return True

    async def everything_goes_in_the_end(self) -> None:
        self.rig.later(days=10)
        await self.rig.files.garbage.collect()
        assert await self.rig.files.garbage.collect() == Collected()
        files = [await self.rig.store.file(Digest(sha256_of(content))) for content in CONTENTS]
        named = {file.object_id for file in files if file is not None}
        assert {object_id_in(key) for key in await self.rig.keys()} == named
        assert len(named) == len(self.published)
        assert await self.rig.ground.count("uploads") == 0


TestFiles = Files.TestCase
TestFiles.settings = settings(
    max_examples=12,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking takes minutes on a real database
)
