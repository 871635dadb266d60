"""The photographs of docs/results/real_faces.md, as its commands and the tests read them.

`PERENNIAL_REAL_DATA` names a folder with `faces.tar.gz` (faces/PERSON/IMAGE.jpg), `faces_pairs.csv`
and `face_model_a.onnx`. `python -m tests.real_faces OUT` writes what the experiment begins with.
"""

import csv
import os
import random
import sys
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from data_shards.splits.benchmark_file import BenchmarkFile, write_benchmark

DATA = Path(os.environ.get("PERENNIAL_REAL_DATA", ""))
needs_faces = pytest.mark.skipif(
    "PERENNIAL_REAL_DATA" not in os.environ, reason="PERENNIAL_REAL_DATA names no folder"
)
People = dict[str, list[str]]
"""The photographs of each person, PERSON/IMAGE.jpg, in order."""


def people() -> People:
    """Everybody in the archive."""
    found: People = {}
    with tarfile.open(DATA / "faces.tar.gz") as archive:
        for name in sorted(member.name for member in archive if member.isfile()):
            _, person, image = name.split("/")
            found.setdefault(person, []).append(f"{person}/{image}")
    return found


def write_photographs(keys: set[str], folder: Path) -> None:
    """Writes those photographs below `folder`."""
    with tarfile.open(DATA / "faces.tar.gz") as archive:
        for member in archive:
            key = member.name.removeprefix("faces/")
            if key in keys:
                file = folder / key
                file.parent.mkdir(parents=True, exist_ok=True)
                content = archive.extractfile(member)
                assert content is not None
                file.write_bytes(content.read())


def halves(everybody: People, most: int) -> tuple[BenchmarkFile, set[str]]:
    """People with one photograph are step 0's, half of the others are learned by step 1, the other
    half is searched for, by up to two photographs in up to two. And the photographs used: of
    somebody who is learned the first `most`."""
    singles = [person for person, images in everybody.items() if len(images) == 1]
    several = [person for person, images in everybody.items() if len(images) > 1]
    random.Random(0).shuffle(several)
    half = len(several) // 2
    learned, tested = sorted(several[:half]), sorted(several[half:])
    middle = {person: (len(everybody[person]) + 1) // 2 for person in tested}
    gallery = [key for p in tested for key in everybody[p][: middle[p]][:2]]
    query = [key for p in tested for key in everybody[p][middle[p] :][:2]]
    used = {key for p in (*singles, *learned) for key in everybody[p][:most]}
    file = BenchmarkFile(
        benchmark="halves of the people", query=query, gallery=gallery, steps=(singles, learned)
    )
    return file, used | {*query, *gallery}


def write_pairs(path: Path, of_each: int = 300) -> set[str]:
    """The standard pairs as `shards import` reads them, of each fold and kind (same, different) the
    first `of_each`, which are 300 in all. Returns the photographs."""
    used, count = set[str](), Counter[tuple[str, str]]()
    given = csv.DictReader((DATA / "faces_pairs.csv").read_text("utf-8").splitlines())
    with path.open("w", encoding="utf-8") as file:
        file.write("path_a,path_b,same,fold\n")
        for row in given:
            kind = row["fold"], row["same"]
            count[kind] += 1
            if count[kind] <= of_each:
                both = [f"{row[f'person_{side}']}/{row[f'image_{side}']}.jpg" for side in "ab"]
                file.write(",".join([*both, row["same"], row["fold"]]) + "\n")
                used |= {*both}
    return used


def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    everybody = people()
    file, used = halves(everybody, most=3)
    for folder, keys in (
        ("faces", used),
        ("singles", {key for person in file.steps[0] for key in everybody[person]}),
        ("verified", write_pairs(out / "pairs.csv")),
    ):
        write_photographs(keys, out / folder)
    write_benchmark(file, out / "halves.json")
    learned = len(used) - len(file.steps[0]) - len(file.query) - len(file.gallery)
    print(f"{len(file.steps[0])} singles, {len(file.steps[1])} people with {learned} photographs")
    print(f"{len(file.query)} queries, {len(file.gallery)} in the gallery")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
