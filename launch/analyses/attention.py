"""Where the models of a method look in some test images, step after step (discriminative
distillation, Figure 6)."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from data_shards.files import write_json
from data_shards.settings import InputError
from launch.analyses.opened import (
    Ids,
    chain_of,
    classifier_of,
    drawn,
    evaluated,
    images_of,
    opened,
)
from launch.runs.run import Chain, Run
from launch.terminal.progress import progress
from monitoring.analysis_schemas import MOST_IMAGES
from monitoring.run_folder import attention_file
from trainer.attention import at_size, grad_cam
from trainer.backbones import Embedder
from trainer.heads.collectives import Ranks

Of = Literal["true", "predicted"]
_IMAGES = 8
"""Images unless some are named."""
_SIDE = 112
"""Pixels of the longer side of what is drawn, at least."""
_STRENGTH = 0.65
"""How much of the colour there is where a map is 1; where it is 0, the image is grey."""
_LUMA = np.array([0.299, 0.587, 0.114])
_WEAK, _STRONG = np.array([255.0, 214.0, 0.0]), np.array([222.0, 24.0, 36.0])


def attention(
    folder: Path,
    console: Console,
    *,
    method: str,
    seed: int | None = None,
    images: Sequence[str] = (),
    classes: Sequence[str] = (),
    of: Of = "true",
) -> Path:
    """Draws Grad-CAM maps of test images by the models of all steps, and writes them.

    `seed` is the method's lowest unless it is given. `images` are test images by their keys, beside
    one, by a draw of the benchmark's seed, of each of `classes`; without either, of eight of step
    0's classes, evenly spaced. The maps are for the logit of the image's own class, or of the one
    that the model decides for; steps before its class was learned have none. Returns the file.
    Raises InputError.
    """
    run, finished = opened(folder)
    steps = evaluated(run, finished)
    chain = chain_of(run, steps, method, seed)
    samples = _samples(run, steps[chain][-1], images, classes)
    pixels = torch.cat(list(images_of(run.dataset, samples, run.config.data)))
    labels = run.benchmark.row_of_identity[run.dataset.identity[samples]]
    names = run.benchmark.names.tolist()
    found: list[dict[str, Any]] = [
        {"image": key, "label": str(names[row]), "jpeg": _jpeg(_enlarged(image)), "maps": []}
        for key, row, image in zip(
            run.dataset.keys(samples), labels.tolist(), pixels.numpy(), strict=True
        )
    ]
    with progress(console, "drawing maps", len(steps[chain]), "steps") as hear:
        for done, step in enumerate(steps[chain], 1):
            known = np.flatnonzero(labels < run.benchmark.row_ends[step])
            if len(known):
                drawn_of = _maps(run, chain, step, pixels[known], labels[known], of)
                for place, (said, overlay) in zip(known.tolist(), drawn_of, strict=True):
                    right = said == labels[place]
                    told = {"step": step, "said": str(names[said]), "right": bool(right)}
                    found[place]["maps"].append({**told, "jpeg": overlay})
            hear(done)
    target = attention_file(folder, chain.name)
    own = {"method": chain.method, "seed": chain.seed, "of": of}
    write_json(target, {"version": 1, **own, "steps": steps[chain], "images": found})
    return target


def _samples(run: Run, step: int, images: Sequence[str], classes: Sequence[str]) -> Ids:
    """The test images asked for, ascending, of classes learned up to `step`. Raises InputError."""
    benchmark, dataset = run.benchmark, run.dataset
    tested = np.concatenate(benchmark.classified[: step + 1])
    rows = benchmark.row_of_identity[dataset.identity[tested]]
    names = [str(name) for name in benchmark.names[: benchmark.row_ends[step]].tolist()]
    if not images and not classes:
        spread = np.linspace(0, benchmark.row_ends[0] - 1, _IMAGES).astype(np.int64)
        classes = [names[row] for row in np.unique(spread).tolist()]
    chosen: list[Ids] = []
    row_of = {name: row for row, name in enumerate(names)}
    for name in classes:
        if name not in row_of:
            raise InputError(
                f"--class {name!r} is none of the {len(names):,} classes learned up to step "
                f"{step}, such as {names[0]!r}"
            )
        own = tested[rows == row_of[name]]
        chosen.append(drawn(own, 1, run.config.benchmark.seed, f"attention/{row_of[name]}"))
    keys = dict(zip(dataset.keys(tested), tested.tolist(), strict=True)) if images else {}
    for key in images:
        if key not in keys:
            raise InputError(
                f"--image {key!r} is none of the {len(keys):,} test images of classes learned up "
                f"to step {step}, such as {next(iter(keys))!r}"
            )
        chosen.append(np.array([keys[key]]))
    found = np.unique(np.concatenate(chosen))
    if len(found) > MOST_IMAGES:
        raise InputError(f"{len(found)} images are too many to draw: name at most {MOST_IMAGES}")
    return found


def _maps(
    run: Run, chain: Chain, step: int, pixels: torch.Tensor, labels: Ids, of: Of
) -> list[tuple[int, str]]:
    """The class decided for each of `pixels` [n, 3, H, W], and its map over it as a JPEG."""
    model, decision = classifier_of(run, chain, step)
    embedder = model.embedder()
    assert isinstance(embedder, Embedder), "adopted ones were refused"
    with torch.inference_mode():
        said = decision.classes(model, embedder(pixels).float())
    rows = model.frozen_rows(Ranks()).weight.detach().float()
    asked = torch.from_numpy(labels) if of == "true" else said

    def logits(embeddings: torch.Tensor) -> torch.Tensor:
        return (model.classifier.inputs(embeddings) * rows[asked]).sum(dim=1)

    maps = grad_cam(embedder, pixels, logits)
    enlarged = [_enlarged(image) for image in pixels.numpy()]
    drawn_maps = at_size(maps, enlarged[0].shape[:2]).numpy()
    overlays = map(_overlaid, enlarged, drawn_maps)
    return list(zip(said.tolist(), map(_jpeg, overlays), strict=True))


def _enlarged(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[H', W', 3] of `image` [3, H, W], each pixel as often as it takes to be seen."""
    times = max(1, -(-_SIDE // max(image.shape[1:])))
    return image.transpose(1, 2, 0).repeat(times, axis=0).repeat(times, axis=1)


def _overlaid(image: NDArray[np.uint8], own: NDArray[np.float32]) -> NDArray[np.uint8]:
    """`image` [H, W, 3] in grey under its map [H, W]: yellow where it is weak, red where strong."""
    shares, grey = own[:, :, None], (image @ _LUMA)[:, :, None]
    colour = _WEAK + shares * (_STRONG - _WEAK)
    mixed = grey + _STRENGTH * shares * (colour - grey)
    return mixed.round().clip(0, 255).astype(np.uint8)


def _jpeg(pixels: NDArray[np.uint8]) -> str:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=85)
    return base64.b64encode(out.getvalue()).decode()
