"""How many cores this process may use: fewer than the machine has, in many containers."""

import math
import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def cores() -> int:
    """Cores that this process may keep busy: those it may run on, or a container's quota of them.

    A quota of 1.5 cores counts as 2.
    """
    return max(1, math.ceil(min(len(os.sched_getaffinity(0)), quota())))


def quota(groups: Path = _CGROUPS, own: Path = Path("/proc/self/cgroup")) -> float:
    """Cores that control groups let this process use on average; infinite without a limit.

    `groups` is where they are mounted, in either version; `own` names the process's.
    """
    limits = [math.inf]
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return math.inf
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        # within a container the path may be the host's: what is mounted is then the group itself
        group = Path(path.lstrip("/"))
        roots = [groups / controllers, groups / "cpu"] if controllers else [groups]
        limits += [_limit(root / place) for root in roots for place in (group, *group.parents)]
    return min(limits)


def _limit(group: Path) -> float:
    """A control group's own limit, cores."""
    try:
        if (group / "cpu.max").exists():
            allowed, period = (group / "cpu.max").read_text(encoding="utf-8").split()
        else:
            allowed = (group / "cpu.cfs_quota_us").read_text(encoding="utf-8")
            period = (group / "cpu.cfs_period_us").read_text(encoding="utf-8")
        share = int(allowed) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # "max": no limit
        return math.inf
    return share if share > 0 else math.inf
