"""The limits around a process."""

from __future__ import annotations

from pathlib import Path

from worker.life.machine_memory import _cgroup_limits, read_memory_limit_bytes, read_resident_bytes


def test_the_limit_is_nine_tenths_of_the_machine_or_of_the_smallest_group_around(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for folder, limit in (("", "max"), ("a", "500"), ("a/b", "700")):
        (tmp_path / folder / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("900\n")
    membership = tmp_path / "membership"
    membership.write_text("0::/a/b\n")
    assert sorted(_cgroup_limits(tmp_path, membership)) == [500, 700, 900]
    assert _cgroup_limits(tmp_path / "none", tmp_path / "none") == []
    assert read_memory_limit_bytes() > 0
    assert read_resident_bytes() > 0
