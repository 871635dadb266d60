"""Why work waits on a cluster: what it asks for, beside what there is."""

import time
from collections.abc import Callable, Mapping
from typing import Any

_PATIENCE_SECONDS = 15.0
"""How long workers may take to start before somebody wonders."""


def lacking(wanted: Mapping[str, float], there: Mapping[str, float]) -> str:
    """What `there` has less of than is `wanted`, in words; empty where there is enough."""
    short = [k for k in sorted(wanted) if there.get(k, 0.0) < wanted[k]]
    return ", ".join(f"{there.get(k, 0.0):g} of {wanted[k]:g} {k}" for k in short)


class Waiting:
    """Says what is missing, once for each lack, while work has not begun."""

    def __init__(self, ray: Any, wanted: Mapping[str, float], tell: Callable[[str], None]) -> None:
        """`wanted` are Ray's resources of all that is to be placed."""
        self._ray, self._wanted, self._tell = ray, wanted, tell
        self._since, self._told = time.monotonic(), ""

    def check(self) -> None:
        """To be called again and again for as long as nothing has begun."""
        if time.monotonic() - self._since < _PATIENCE_SECONDS:
            return
        self._since = time.monotonic()
        all_there = lacking(self._wanted, self._ray.cluster_resources())
        free = all_there or lacking(self._wanted, self._ray.available_resources())
        if free and free != self._told:
            self._told = free
            where = "the cluster has" if all_there else "other work leaves"
            self._tell(f"waiting for machines: {where} {free}")
