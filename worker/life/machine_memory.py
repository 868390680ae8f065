"""How much of this machine's memory there is for this process, and how much it has. Reads; decides nothing but a default."""

from __future__ import annotations

from pathlib import Path

import psutil

DEFAULT_SHARE = 0.9
"""Of the machine's or the container's memory, where no limit is set."""

_CGROUPS = Path("/sys/fs/cgroup")


def read_memory_limit_bytes() -> int:
    """Nine tenths of what this process may use: of the machine's memory, or of what its control group allows."""
    allowed = [psutil.virtual_memory().total, *_cgroup_limits(_CGROUPS, Path("/proc/self/cgroup"))]
    return int(min(allowed) * DEFAULT_SHARE)


def read_resident_bytes() -> int:
    """What this process holds of the machine's memory now."""
    return int(psutil.Process().memory_info().rss)


def _cgroup_limits(root: Path, membership: Path) -> list[int]:
    """Every limit on the way from this process's group to the root; version 2 and, where it is mounted, version 1.

    Source: the kernel's admin-guide/cgroup-v2.rst (memory.max) and cgroup-v1/memory.rst (memory.limit_in_bytes).
    """
    files = [root / "memory.max", root / "memory" / "memory.limit_in_bytes"]
    try:
        for line in membership.read_text().splitlines():
            controllers, path = line.split(":", 2)[1:]
            top = root if not controllers else root / "memory"
            name = "memory.max" if not controllers else "memory.limit_in_bytes"
            if not controllers or "memory" in controllers.split(","):
                group = Path(path.lstrip("/"))
                files += [top / each / name for each in (group, *group.parents)]
    except (OSError, ValueError):
        pass  # no control groups: the machine's memory is the limit
    return [limit for file in files if (limit := _number(file)) is not None and limit > 0]


def _number(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None  # "max" is no limit
