"""What real and hostile inputs broke once, and what is done now: a table in docs/reliability.md.

``@pytest.mark.reliability(kind, done)`` on a test is a line of it: which of `KINDS` the test is of
and what happens now. ``python -m tests.reliability`` writes the table; a test holds it up to date.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

from monitoring.documents import table, with_part

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "reliability.md"
KINDS = (
    "claims that held on one processor only",
    "figures of published protocols",
    "gradient accumulation",
    "answers, distances and vectors that were not what they were called",
    "result pages",
    "programs in model files",
    "addresses and instructions in folders",
    "secrets and temporary files",
    "paths, sizes and numbers from files",
    "pictures that start programs",
    "archives and images that hang or crash a reader",
    "damaged and hostile run folders",
    "configurations in YAML",
    "what reaches a terminal",
    "locales",
    "the machine around a run",
    "a plain folder of photographs",
    "advice",
    "images that were left out silently",
    "archives of other tools",
    "silence about what was not done",
)
"""By number; 0 is of the processor, 1 to 20 are the examples that were reported."""


def claims() -> Iterator[tuple[int, str, str]]:
    """Kind, what is done now and the test's name, for each marked test, by kind and file."""
    found = [claim for path in sorted(TESTS.rglob("test_*.py")) for claim in _marked(path)]
    yield from sorted(found, key=lambda claim: claim[0])


def _marked(path: Path) -> Iterator[tuple[int, str, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for mark in getattr(node, "decorator_list", ()):
            if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.reliability":
                kind, done = map(ast.literal_eval, mark.args)
                yield kind, done, f"{path.relative_to(TESTS)}::{node.name}"


def page(text: str) -> str:
    """`text`, docs/reliability.md, with the table written anew."""
    rows = [
        (f"{kind}", KINDS[kind], done.replace("|", "\\|"), f"`{name}`")
        for kind, done, name in claims()
    ]
    return with_part(text, "inputs", table(("", "kind", "what is done now", "test"), rows))


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
