"""How a run is, in one word and a few lines."""

from monitoring.live.endpoints import Answer, Target

STALLED_SECONDS, MISSING_SECONDS = 900, 120
"""How long nothing is done before it is said: as the alerts have it."""


def judge(
    damage: str,
    complete: bool,
    broken: bool,
    target: Target | None,
    driver: Answer | None,
    now: float,
) -> tuple[str, list[str]]:
    """A run's state, and in words what somebody should do something about.

    `damage` is what is wrong with its configuration, `complete` whether nothing is left to do,
    `broken` whether its newest loss is not finite; `target` and `driver` are its driver as listed
    and what that said. The state is damaged, lost (the driver is listed and does not answer),
    stalled, running, unasked (listed, on a machine that is not to be asked), finished or stopped.
    """
    trouble = ["the newest loss is not finite"] if broken else []
    if damage:
        return "damaged", [damage]
    if target is None:
        return ("finished" if complete else "stopped"), trouble
    if driver is None:
        return "unasked", trouble
    if driver.error:
        return "lost", [
            f"the driver at {target.address} does not answer ({driver.error}): "
            "the same perennial run command goes on from the last checkpoint",
            *trouble,
        ]
    idle = now - driver.values.get("perennial_progress_timestamp_seconds", now)
    heard, expected = (driver.values.get(f"perennial_ranks_{k}") for k in ("heard", "expected"))
    if heard is not None and expected and heard < expected and idle > MISSING_SECONDS:
        trouble.append(f"{heard:.0f} of {expected:.0f} ranks are heard of")
    if idle > STALLED_SECONDS:
        return "stalled", [f"nothing has been done for {idle / 60:.0f} min", *trouble]
    return "running", trouble
