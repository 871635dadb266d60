"""The neighbourhood phase's forward pass against plain fp32 eager: ResNet-50, 112×112.

The phase must be at least 6 times as fast where the CPU has bf16 instructions.
"""

import argparse
import tempfile
from pathlib import Path

import torch

from benchmarks import interleaved, report
from launch.inference.embed import fast_embedder
from trainer.backbones import EmbedderSettings, build_embedder
from trainer.heads.collectives import Ranks
from trainer.heads.margin_loss import ClassifierSettings, MarginLoss
from trainer.heads.rows import ShardedRows
from trainer.model import Model, save_model
from trainer.teacher import TeacherSettings


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    quick = parser.parse_args().quick
    settings = EmbedderSettings(architecture="resnet50", dimension=256)
    batch, rounds = 64, 3 if quick else 9
    images = torch.randint(0, 256, (batch, 112, 112, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    with tempfile.TemporaryDirectory() as folder:
        rows = ShardedRows.new(first=0, last=8, dimension=256, seed=0, ranks=Ranks())
        embedder = build_embedder(settings)
        linear = MarginLoss(ClassifierSettings(), 0, images.device)
        names = ["-"] * 8
        save_model(
            folder=Path(folder) / "m",
            settings=settings,
            image_size=(112, 112),
            classifier=linear,
            embedder=embedder,
            blocks=[rows],
            names=names,
            ranks=Ranks(),
        )
        model = Model.open(Path(folder) / "m")
        plain = model.embedder()
        phase = fast_embedder(model, TeacherSettings(precision="bf16", compile=True))
    contiguous = images.contiguous()
    with torch.inference_mode():
        seconds = interleaved(
            {"plain": lambda: plain(contiguous), "phase": lambda: phase(images)}, rounds
        )
        agreement = torch.nn.functional.cosine_similarity(
            plain(contiguous).float(), phase(images).float()
        ).mean()
    speed = {name: batch / value for name, value in seconds.items()}
    ratio = speed["phase"] / speed["plain"]
    report(
        "neighbourhoods",
        [
            {"forward pass": "plain fp32 eager", "images/s": speed["plain"], "ratio": 1.0},
            {"forward pass": "neighbourhood phase", "images/s": speed["phase"], "ratio": ratio},
        ],
        {
            "plain_images_per_second": speed["plain"],
            "phase_images_per_second": speed["phase"],
            "ratio": ratio,
            "mean_cosine_between_their_embeddings": float(agreement),
        },
    )


if __name__ == "__main__":
    main()
