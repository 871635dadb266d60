"""What an evaluation costs beside the bare forward pass of its images: 32×32, a million weights.

Both sides have one thread, in this process, in turns. The bare side has decoded images in memory,
in batches of the same size; an evaluation reads shards, decodes, embeds, writes vectors and
searches among them. Last, the whole command, which starts Ray with an actor a core.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import DEVNULL, run
from typing import Any

import torch

from benchmarks import interleaved, report
from data_shards.pipeline import ImageStream, PipelineSettings, Request
from data_shards.storage.dataset import ShardDataset
from data_shards.storage.remote import CacheSettings
from launch.inference.embed import fast_embedder
from launch.inference.test_sets import Embedding, Measurement
from launch.inference.worker import ShardWorker
from launch.runs.test_sets import open_test
from trainer.backbones import EmbedderSettings, build_embedder
from trainer.evaluation import TestSetSettings
from trainer.heads.collectives import Ranks
from trainer.heads.margin_loss import ClassifierSettings, MarginLoss
from trainer.heads.rows import ShardedRows
from trainer.model import Model, save_model
from trainer.teacher import TeacherSettings

PERENNIAL = [sys.executable, "-m", "launch.cli"]


def untrained_model(folder: Path) -> Model:
    """A model with random weights, saved as runs save theirs."""
    settings = EmbedderSettings(architecture="small", width=32, dimension=128)
    save_model(
        folder=folder,
        settings=settings,
        image_size=(32, 32),
        classifier=MarginLoss(ClassifierSettings(), 0, torch.device("cpu")),
        embedder=build_embedder(settings),
        blocks=[ShardedRows.new(first=0, last=8, dimension=128, seed=0, ranks=Ranks())],
        names=["-"] * 8,
        ranks=Ranks(),
    )
    return Model.open(folder)


def test_set(folder: Path, identities: int) -> Path:
    """Drawn characters, all of them queries or gallery but for a few."""
    made = ["--out", str(folder / "glyphs"), "--identities", str(identities), "--variants", "2"]
    commands = [["glyphs", *made], ["split", made[1], "--out", str(folder), "--test", "0.99"]]
    for words in commands:
        run([*PERENNIAL, "shards", *words], check=True, stdout=DEVNULL)
    return folder / "test"


def decoded(dataset: ShardDataset, batch: int) -> list[torch.Tensor]:
    """All images, [batch, 3, H, W] uint8 each."""
    numbers = torch.arange(len(dataset) // batch * batch).numpy().reshape(-1, batch)
    requests = (Request.plain(dataset, part) for part in numbers)
    stream = ImageStream(dataset, requests, batch, PipelineSettings(), augmented=False)
    return [images.clone() for _, images in stream]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the images")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, data = untrained_model(folder / "model"), test_set(folder, 68 if quick else 680)
        measure(model, data, folder)


def measure(model: Model, data: Path, folder: Path) -> None:
    """Both sides on the test set `data`; `folder` holds what they write."""
    settings, batch = (
        TestSetSettings(dataset=str(data), protocol="retrieval"),
        TeacherSettings().batch,
    )
    test = open_test(settings, "cosine")
    embedder, images = (
        fast_embedder(model, TeacherSettings()),
        decoded(ShardDataset.open(data), batch),
    )
    worker = ShardWorker(
        str(data), CacheSettings(), threads=1, target_file=folder / "targets" / "a.json", name="0"
    )

    def map_(unit: Callable[..., Any], calls: list[tuple[Any, ...]]) -> list[Any]:
        return [worker.run(unit, *call) for call in calls]

    def bare() -> None:
        with torch.inference_mode():
            for part in images:
                embedder(part)

    def evaluation() -> None:
        shutil.rmtree(folder / "scratch", ignore_errors=True)
        how = Embedding(model.folder, PipelineSettings(), batch, map_)
        Measurement(how, folder / "scratch", map_).results(test, folder / "scratch")

    embedded = sum(len(samples) for samples in test.protocol.samples().values())
    counts = {"forward pass alone": len(images) * batch, "evaluation": embedded}
    seconds = interleaved(dict(zip(counts, (bare, evaluation), strict=True)), rounds=5)
    worker.close()
    begun = time.perf_counter()
    words = [str(model.folder), "--on", str(data), "--protocol", "retrieval", "--json"]
    run([*PERENNIAL, "evaluate", *words], check=True, stdout=DEVNULL, cwd=folder)
    counts["the command, Ray's start and end among it"] = embedded
    seconds["the command, Ray's start and end among it"] = time.perf_counter() - begun
    speed = {side: count / seconds[side] for side, count in counts.items()}
    rows = [{"side": s, "s": seconds[s], "images/s": speed[s]} for s in counts]
    weights = sum(weight.numel() for weight in model.embedder().parameters())
    figures = {"images": embedded, "weights": weights, "images_per_second": speed}
    ratio = speed["evaluation"] / speed["forward pass alone"]
    report("embedding", rows, {**figures, "ratio": ratio})


if __name__ == "__main__":
    main()
