"""Where this program's own files lie, in its repository or installed.

In the repository its packages lie side by side. A wheel has them within `perennial` (`setup.py`),
so that no other's `trainer` or `launch` is taken for this program's.
"""

from pathlib import Path

ROOT = Path(__file__).parents[1]
"""The folder that holds ``launch/``, ``configs/`` and ``k8s/``."""
SEARCHED = Path(__file__).parents[__name__.count(".")]
"""The folder in which Python finds `PACKAGES`: `ROOT`, or the one above."""
PACKAGES = (
    ("perennial", "data_shards", "trainer", "launch", "monitoring", "untrusted")
    if SEARCHED == ROOT
    else ("perennial",)
)
"""The names of this program's packages."""
