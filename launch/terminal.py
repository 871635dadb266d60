"""Where commands print: a terminal, or a file or pipe, whose lines may be as long as they need."""

import os
import sys

from rich.console import Console

_WIDE = 132

_narrow = sys.stdout.isatty() or "COLUMNS" in os.environ
console = Console(highlight=False, width=None if _narrow else _WIDE)
