"""docs/photographs.md, typed as it stands there, with messy folders."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

ROOT = Path(__file__).parents[2]
NAMES = ("IMG {n}.JPG", "{n}.png", "0.jpg.{n}", "{who}_000{n}", "photo ({n}).jpeg", "dsc.{n}.webp")


def photograph(who: int, shot: int) -> Image.Image:
    """A thing of its own shapes and colours, at another place and in another light each time."""
    thing, view = np.random.default_rng(who), np.random.default_rng(1000 + 7 * who + shot)
    size = (int(view.integers(70, 100)), int(view.integers(70, 100)))
    picture = Image.new("RGB", size, tuple(view.integers(150, 255, 3).tolist()))
    drawn = ImageDraw.Draw(picture)
    dx, dy = view.integers(-8, 8, 2).tolist()
    for _ in range(4):
        x, y, w, h = thing.integers(10, 40, 4).tolist()
        colour = tuple(thing.integers(0, 200, 3).tolist())
        draw = drawn.ellipse if thing.random() < 0.5 else drawn.rectangle
        draw((x + dx, y + dy, x + dx + w, y + dy + h), fill=colour)
    return picture


def photographs(folder: Path, things: range) -> None:
    for who in things:
        own = folder / f"{('Ana María', 'b[x]b', '田中', 'x.y')[who % 4]} {who}"
        own.mkdir(parents=True)
        for shot in range(4):
            name = NAMES[(who + shot) % len(NAMES)].format(who=own.name, n=shot)
            kind = {"png": "PNG", "ebp": "WEBP"}.get(name[-3:], "JPEG")
            photograph(who, shot).save(own / name, kind)
        (own / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")


def commands() -> list[str]:
    page = (ROOT / "docs" / "photographs.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```bash\n(.*?)^```", page, re.S | re.M)
    return [line for line in block.splitlines() if line]


@pytest.mark.reliability(16, "docs/photographs.md walks a messy folder from import to backfill")
def test_what_the_page_says_of_photographs_is_true(tmp_path):
    photographs(tmp_path / "photos" / "november", range(140))
    photographs(tmp_path / "photos" / "december", range(140, 200))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    command = f'perennial() {{ "{sys.executable}" -m launch.cli "$@"; }}\n'
    environment = {**os.environ, "COLUMNS": "150", "PYTHONPATH": str(ROOT)}
    told, before = "", command + "set -e\n"
    for line in commands():
        if not line.startswith("perennial"):
            before += line + "\n"
            continue
        done = subprocess.run(
            ["bash", "-c", before + line],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        told += f"$ {line}\n{done.stdout}"
        assert done.returncode == 0, told
    assert len(re.findall(r"^\$ perennial", told, re.M)) == 13
    for words in (
        "560 images of 140 identities",
        "no image says which camera took it",
        "90 identities are learned, 22 kept for testing",
        "48 identities are learned, 12 kept for testing",
        "2 of 2 phases are done",
        "strangers: top-1",
        "50 of 560 vectors",
    ):
        assert words in told, told
    assert (tmp_path / "runs" / "november" / "report.html").exists()
