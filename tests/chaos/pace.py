"""A unit of work that takes its time, so that a test can kill who does it."""

import time
from typing import Any

from launch.phases.neighbours import write_answers


def paced_answers(*call: Any) -> None:
    """`launch.phases.neighbours.write_answers`, which is over before a busy machine has looked."""
    time.sleep(0.3)
    write_answers(*call)
