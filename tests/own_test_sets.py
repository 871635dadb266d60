"""Small datasets of each kind of test set, and how a run is told of them."""

from pathlib import Path

import pyarrow as pa

from data_shards.sources import SourceImage
from data_shards.storage.dataset import ShardDataset
from data_shards.writing.writer import write_dataset
from tests.conftest import jpeg
from trainer.evaluation import EvaluationSettings


def image(identity: int, camera: int, role: str = "train") -> SourceImage:
    key = f"{role}/{identity}_{camera}"
    return SourceImage(jpeg(identity, camera), f"id-{identity}", f"c-{camera}", key, role)


def pairs_table(people: int) -> pa.Table:
    """A genuine and an impostor pair of every person, in ten folds; one image was refused."""
    left = [f"train/{i}_0" for i in range(people)] * 2
    right = [f"train/{i}_1" for i in range(people)]
    right += [f"train/{(i + 1) % people}_1" for i in range(people)]
    left[0] = "train/no-such-image"
    same = [True] * people + [False] * people
    fold = pa.array([i % 10 for i in range(people)] * 2, pa.int8())
    return pa.table({"left_key": left, "right_key": right, "same": same, "fold": fold})


def template_tables(people: int) -> dict[str, pa.Table]:
    """Templates 2i (two media, three images) and 2i + 1 (one image) of every person i."""
    rows = []
    for i in range(people):
        rows += [(2 * i, 0, f"train/{i}_0"), (2 * i, 0, f"train/{i}_1")]
        rows += [(2 * i, 1, f"train/{i}_2"), (2 * i + 1, 0, f"train/{i}_3")]
    template, medium, key = zip(*rows, strict=True)
    pairs = [(2 * i, 2 * j + 1, i == j) for i in range(people) for j in range(people)]
    left, right, same = zip(*pairs, strict=True)
    # each gallery holds the larger templates of half of the people; all others are probes of both
    part = ["gallery-1" if i < people // 2 else "gallery-2" for i in range(people)]
    search = {
        "template": [2 * i for i in range(people)] + [2 * i + 1 for i in range(people)],
        "subject": 2 * list(range(people)),
        "part": part + ["probe"] * people,
    }
    return {
        "templates": pa.table({"template": template, "medium": medium, "sample_key": key}),
        "template_pairs": pa.table({"left": left, "right": right, "same": same}),
        "search": pa.table(search),
    }


def write_sets(root: Path) -> None:
    """Writes datasets of each kind of test into `root`, in shards of 16."""

    def write(name, images, **tables):
        write_dataset(images, root / name, {"kind": name}, 16, tables=tables)

    faces = [image(i, c) for i in range(100, 120) for c in range(4)]
    renamed = [f._replace(key=f"train/{n // 4}_{n % 4}") for n, f in enumerate(faces)]
    write("pairs", renamed, pairs=pairs_table(20))
    write("templates", renamed, **template_tables(20))
    probes = [image(i, c) for i in range(200, 206) for c in range(3)]
    others = [image(i, 0, "distractor") for i in range(300, 330)]
    write("mates", [*others[:15], *probes, *others[15:]])
    write("apart", others, noisy=pa.table({"sample_key": ["distractor/301_0"]}))
    noisy = pa.table({"sample_key": ["train/200_0", "train/200_1", "train/200_2"]})
    write("probes", probes, noisy=noisy)
    people = [image(i, c, "gallery") for i in range(400, 412) for c in range(4)]
    nobody = [image(i, 1, "distractor") for i in range(420, 428)]
    write("market", people + nobody + [image(i, 2, "query") for i in range(404, 416)])


TESTS = {
    "lfw": {"dataset": "pairs", "protocol": "verification"},
    "ijbc": {"dataset": "templates", "protocol": "templates"},
    "megaface": {"dataset": "probes", "protocol": "identification", "distractors": "apart"},
    "glyphface": {"dataset": "mates", "protocol": "identification"},
    "market": {"dataset": "market", "protocol": "retrieval"},
}


def configured(sets: Path | str, tests: dict = TESTS) -> EvaluationSettings:
    """Tests whose datasets lie below a folder or URL."""
    sides = ("dataset", "distractors")
    values = {
        name: test | {side: f"{sets}/{test[side]}" for side in sides if side in test}
        for name, test in tests.items()
    }
    return EvaluationSettings.model_validate({"tests": values})


def opened(sets: Path, name: str) -> list[ShardDataset]:
    """The datasets of a test."""
    test = configured(sets).tests[name]
    return [ShardDataset.open(f) for f in (test.dataset, test.distractors) if f]


def spread(calls):
    """Does the units of an evaluation's work one after the other."""
    return [function(*arguments) for function, *arguments in calls]
