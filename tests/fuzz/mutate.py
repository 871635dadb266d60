"""Damaged JSON: a value of another type or size somewhere, keys lost, made up or given twice."""

import json
import random
from typing import Any

_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1, 2**31, 2**40, 2**63, 10**400, 1e308, float("nan"), float("inf"), 0.5,
    "", "x", "../../etc/passwd", "/dev/zero", "\x1b]0;x\x07", "[/]", "a\nb", "\ud800", "$x^$",
    "s" * 100_000, "<script>alert(1)</script>", "9" * 30, [], {}, [[]], [None], {"": None},
)  # fmt: skip


def mutations(value: Any, seed: int) -> bytes:
    """`value` as JSON with one to three changes that `seed` decides."""
    chance = random.Random(seed)
    made = json.loads(json.dumps(value))
    for _ in range(chance.choice((1, 1, 2, 3))):
        made = _changed(made, chance)
    text = json.dumps(made)
    if chance.random() < 0.05:
        depth = chance.choice((70, 100_000))
        text = text.replace("null", "[" * depth + "]" * depth, 1)
    if chance.random() < 0.05:
        text = text.replace("{", '{"phase": 1, "phase": 2, ', 1)
    return text.encode("utf-8", "surrogatepass")


def _changed(value: Any, chance: random.Random) -> Any:
    """`value` with one change, at a random place."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(list(value))
        kind = chance.random()
        if kind < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if kind < 0.15:
            return {**value, str(chance.choice(_VALUES))[:50]: chance.choice(_VALUES)}
        return {**value, key: _changed(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.9:
        at = chance.randrange(len(value))
        kind = chance.random()
        if kind < 0.1:
            return value[:at] + value[at + 1 :]
        if kind < 0.2:
            return value * chance.choice((2, 50))
        return [*value[:at], _changed(value[at], chance), *value[at + 1 :]]
    if isinstance(value, int | float) and not isinstance(value, bool) and chance.random() < 0.3:
        return -value
    return chance.choice(_VALUES)
