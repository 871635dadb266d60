"""The tables of `perennial inspect`."""

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from trainer.checkpoint.inspection import Inspection


def inspection_tables(found: Inspection) -> Iterator[Table]:
    """A table of the card's facts, and one of the files."""
    facts = Table(title=str(found.folder), title_justify="left", show_header=False)
    for key, value in found.facts.items():
        facts.add_row(key, value)
    if found.facts:
        yield facts
    files = Table("file", "bytes", "", "what is inside")
    files.columns[1].justify = "right"
    for file in found.files:
        size = "missing" if file.bytes is None else f"{file.bytes:,}"
        mark = Text("damaged", "red") if file.damaged else Text("✓", "green")
        files.add_row(file.name, size, mark, file.content)
    yield files
