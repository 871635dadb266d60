"""Where this program's own files lie."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
"""The folder that holds ``launch/``, ``configs/`` and ``k8s/``."""
