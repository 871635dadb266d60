"""bf16 asked of a processor that has no instructions for it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.trainer.loops import train_step
from trainer.heads.margin_loss import ClassifierSettings
from trainer.heads.margins import CosFace
from trainer.model import Model
from trainer.processor import multiplies_bf16

ROOT = Path(__file__).parents[2]
BF16 = ClassifierSettings(margin=CosFace(), precision="bf16")
FP32 = ClassifierSettings(margin=CosFace())


def trained(dataset: str, out: str) -> None:
    """Prints the losses of a training in bf16 and in fp32 and what was told."""
    told: list[str] = []
    half = train_step(
        Path(dataset), Path(out) / "a", "finetune", 0, classifier=BF16, tell=told.append,
        precision="bf16",
    )  # fmt: skip
    whole = train_step(Path(dataset), Path(out) / "b", "finetune", 0, classifier=FP32)
    print(json.dumps({"bf16": half, "fp32": whole, "told": told}))


@pytest.mark.reliability(
    15, "bf16 on a CPU without bf16 instructions is computed in fp32, and said in one line"
)
@pytest.mark.parametrize("most", ["AVX2", "AVX512_CORE_VNNI"])
def test_without_instructions_the_products_are_those_of_fp32(small_folder, tmp_path, most):
    code = "import sys; from tests.trainer.test_processor import trained; trained(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, small_folder, tmp_path],
        env={**os.environ, "PYTHONPATH": str(ROOT), "ONEDNN_MAX_CPU_ISA": most},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["bf16"] == found["fp32"]
    (line,) = found["told"]
    assert line.startswith("training.precision and classifier.precision are bf16, for which this ")
    card = Model.open(tmp_path / "a" / "0" / "model").classifier
    assert card.precision == "bf16", "the configuration is kept: another machine may go on"


@pytest.mark.skipif(not multiplies_bf16(), reason="this processor has no bf16 instructions")
def test_with_instructions_bf16_is_bf16(small_folder, tmp_path):
    told: list[str] = []
    half = train_step(
        small_folder, tmp_path / "a", "finetune", 0, tell=told.append, precision="bf16"
    )
    assert half != train_step(small_folder, tmp_path / "b", "finetune", 0)
    assert told == []


def test_a_gpu_is_not_asked_what_the_processor_has(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert multiplies_bf16("cuda")
