"""A model's card: what the hub reads of it, the run's own figures, and a recipe that runs."""

import json
import re
import shutil
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from monitoring.intervals import half_width
from tests.commands import perennial
from tests.launch.test_galleries import adopted
from tests.launch.test_net import OLD_RUN
from trainer.model import Model

STEP = "run/chains/fkd/seed-{}/steps/2"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of two seeds, and the folder made of its last model."""
    root = tmp_path_factory.mktemp("card")
    with tarfile.open(OLD_RUN) as archive:
        archive.extractall(root, filter="data")
    shutil.copytree(root / "run/chains/fkd/seed-0", root / "run/chains/fkd/seed-1")
    file = root / STEP.format(1) / "evaluation.json"
    found = json.loads(file.read_text())
    found["top1"] = found["top1"] / 2
    file.write_text(json.dumps(found))
    lines = map(json.loads, (root / "run/ledger.jsonl").read_text().splitlines())
    told = [line | {"commit": ("cd" if line["step"] else "ab") * 20} for line in lines]
    (root / "run/ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in told))
    words = ("run:fkd:0", "--out", root / "hub", "--license", "apache-2.0")
    done = perennial("card", *words, cwd=root)
    assert done.returncode == 0, done.stderr
    return root


def test_the_hubs_own_reader_takes_it(made):
    hub = pytest.importorskip("huggingface_hub", reason="no huggingface_hub: it is in [dev]")
    card = hub.ModelCard.load(made / "hub" / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.pipeline_tag == "image-feature-extraction"
    found = json.loads((made / STEP.format(0) / "evaluation.json").read_text())
    told = {one.metric_name: one.metric_value for one in card.data.eval_results}
    assert told["top-1 on unseen identities"] == pytest.approx(found["top1"], abs=1e-5)
    assert {path.name for path in (made / "hub").iterdir()} == {
        "README.md",
        "model.onnx",
        "model.safetensors",
    }


def test_metrics_have_the_runs_intervals(made):
    text = (made / "hub" / "README.md").read_text()
    values = [
        100 * json.loads((made / STEP.format(seed) / "evaluation.json").read_text())["top1"]
        for seed in (0, 1)
    ]
    mean, half = np.mean(values), half_width(values)
    line = f"| {values[0]:.1f} | {mean:.1f} [{mean - half:.1f}, {mean + half:.1f}], 2 seeds |"
    assert f"| top-1 on unseen identities {line}" in text
    against = json.loads((made / STEP.format(0) / "compatibility.json").read_text())["against"]
    assert text.count("| tar@1e-2 |") + text.count("| top1 |") == sum(
        len(one["points"]) for one in against
    )


def test_provenance_names_the_model_and_no_host_person_or_place(made):
    text = (made / "hub" / "README.md").read_text()
    model = Model.open(made / STEP.format(0) / "model")
    assert model.fingerprint in text and "run: `run`, chain `fkd/seed-0`" in text
    assert re.search(r"commit `([0-9a-f]{40}\+?|unknown)`", text)
    assert f"by the code of `{'ab' * 20}`, `{'cd' * 20}`\n" in text
    holder = json.loads((made / "run/attempts/1.json").read_text())["holder"]
    assert holder["host"] not in text
    assert str(made) not in text
    assert not [name for name in model.names() if name in text]
    for section in ("Model", "Data", "Method", "How to use", "Preprocessing", "Metrics", "Limits"):
        assert f"\n## {section}\n" in text


def test_the_recipe_in_it_gives_the_models_vectors(made, monkeypatch):
    monkeypatch.chdir(made / "hub")
    model = Model.open(made / STEP.format(0) / "model")
    height, width = model.image_size
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    # without loss, though it is called .jpg: the recipe asks Pillow, which looks into the file
    Image.fromarray(picture).save("image.jpg", format="PNG")
    code = re.search(r"```python\n(.*?)```", (made / "hub" / "README.md").read_text(), re.S)[1]
    found = {}
    exec(code, found)
    images = torch.from_numpy(picture).permute(2, 0, 1)[None]
    with torch.inference_mode():
        expected = torch.nn.functional.normalize(model.embedder()(images)).numpy()
    np.testing.assert_allclose(found["vectors"], expected, atol=1e-5)
    (made / "hub" / "image.jpg").unlink()


def test_a_model_outside_of_a_run_says_that_nothing_is_known(made):
    shutil.copytree(made / STEP.format(0) / "model", made / "loose")
    done = perennial("card", "loose", "--out", made / "other", cwd=made)
    assert done.returncode == 0, done.stderr
    text = (made / "other" / "README.md").read_text()
    assert "license: unknown" in text and "None are stored with the model." in text
    adopted(made / "graph", 0, 8)
    refused = perennial("card", "graph", "--out", made / "third", cwd=made)
    assert refused.returncode == 2 and "adopted as an ONNX graph" in refused.stderr
    assert not (made / "third").exists()
    again = perennial("card", "loose", "--out", made / "other", cwd=made)
    assert again.returncode == 2 and "exists: give another folder" in again.stderr
