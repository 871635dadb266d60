"""A finished model as one file for a service: ONNX, TorchScript, or weights as safetensors.

The programs take RGB pixels [n, 3, h, w] from 0 to 255, whose scaling is within, and any n.
"""

import io
import json
import logging
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import nn
from torch.nn import functional as F

from data_shards.settings import InputError
from trainer.adopted import AdoptedEmbedder, AdoptedSettings
from trainer.backbones import Embedder, EmbedderSettings, build_embedder
from trainer.decisions import Decision
from trainer.heads.collectives import Ranks
from trainer.model import Model
from trainer.packages import package

Outputs = tuple[torch.Tensor, ...]
"""The vectors [n, d] and, where classes go along, their scores [n, C]."""
Runs = Callable[[torch.Tensor], Outputs]
"""A file at work: `Outputs` of images [n, 3, h, w] uint8."""
ALIKE = 1e-3
"""Most that an exported vector may be off, of its length: kernels round differently."""
_OPSET = 17


class Exported(nn.Module):
    """A model's embedder, and with a `decision` its classifier, as a service calls it."""

    def __init__(self, model: Model, decision: Decision | None = None) -> None:
        """Raises InputError for a model that was adopted as a graph."""
        super().__init__()
        if isinstance(model.settings, AdoptedSettings) and model.settings.source == "onnx":
            raise InputError(
                f"{model.folder} was adopted as an ONNX graph, and would be exported as just that: "
                "use the file that it was adopted from"
            )
        self._model, self._decision = model, decision
        self.embedder = model.embedder().requires_grad_(False)
        pools = [
            name
            for name, module in self.embedder.named_modules()
            if isinstance(module, nn.AdaptiveAvgPool2d)
        ]
        for name in pools:
            pool: Any = self.embedder.get_submodule(name)
            self.embedder.set_submodule(name, _Pool(pool.output_size))
        if decision is not None:
            self.register_buffer("directions", model.frozen_rows(Ranks()).weight.detach().float())
        self.eval()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images that it takes."""
        settings = self._model.settings
        if isinstance(settings, AdoptedSettings):
            return settings.pixels.size
        assert self._model.image_size is not None, "of every model trained here"
        return self._model.image_size

    def forward(self, pixels: torch.Tensor) -> torch.Tensor | Outputs:
        """`pixels` [n, 3, h, w] uint8 or float, 0 to 255 → `Outputs`, or the vectors alone."""
        if isinstance(self.embedder, Embedder):
            # not Embedder.pixels, which works in place and would change a caller's float pixels
            vectors = self.embedder.embed((pixels.float() - 127.5) / 127.5)
        else:
            vectors = self.embedder(pixels)
        if self._decision is None:
            return vectors
        directions: Any = self.directions
        return vectors, self._decision.scores(self._model, vectors, directions)

    def facts(self) -> dict[str, str]:
        """What goes along in the file, as text by name."""
        model, (height, width) = self._model, self.size
        return {
            "fingerprint": model.fingerprint,
            "input": f"pixels [n, 3, {height}, {width}], RGB, 0 to 255, not scaled",
            "output": f"vectors [n, {model.settings.dimension}], not of unit length: compare "
            "them by their cosine",
            **({} if model.centre is None else {"centre": str(model.centre)}),
        }


class _Pool(nn.Module):
    """nn.AdaptiveAvgPool2d as two matrix products, where ONNX has no operator for it."""

    def __init__(self, size: int | tuple[int, int]) -> None:
        super().__init__()
        self._size = (size, size) if isinstance(size, int) else size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = map(int, x.shape[2:])
        if height % self._size[0] == 0 and width % self._size[1] == 0:
            return F.adaptive_avg_pool2d(x, self._size)
        return _means(height, self._size[0]) @ x @ _means(width, self._size[1]).T


def _means(length: int, parts: int) -> torch.Tensor:
    """[parts, length] whose product with a column are the means of `parts` stretches of it."""
    matrix = torch.zeros(parts, length)
    for part in range(parts):
        first, last = part * length // parts, -(-(part + 1) * length // parts)
        matrix[part, first:last] = 1 / (last - first)
    return matrix


def _example(program: Exported) -> torch.Tensor:
    return torch.zeros(2, 3, *program.size)


def _onnx(program: Exported) -> bytes:
    onnx, out = package("onnx", "--to onnx"), io.BytesIO()
    names = ["vectors"] if program._decision is None else ["vectors", "scores"]
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        torch.onnx.export(
            program,
            (_example(program),),
            out,  # type: ignore[arg-type]
            # the newer exporter takes ten times as long and names sizes of its own in the graph
            dynamo=False,
            opset_version=_OPSET,
            input_names=["pixels"],
            output_names=names,
            dynamic_axes={name: {0: "images"} for name in ("pixels", *names)},
        )
    model = onnx.load_model_from_string(out.getvalue())
    onnx.helper.set_model_props(model, program.facts())
    model.producer_name = "perennial"
    return bytes(model.SerializeToString())


def _run_onnx(content: bytes) -> Runs:
    session = package("onnxruntime", "--to onnx").InferenceSession(
        content, providers=["CPUExecutionProvider"]
    )

    def run(images: torch.Tensor) -> Outputs:
        found = session.run(None, {"pixels": images.float().numpy()})
        return tuple(torch.from_numpy(one) for one in found)

    return run


def _torchscript(program: Exported) -> bytes:
    out = io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        traced = torch.jit.trace(program, _example(program))
        torch.jit.save(traced, out, {"perennial.json": json.dumps(program.facts())})
    return out.getvalue()


def _run_torchscript(content: bytes) -> Runs:
    # of the file that was just made: another's would be a program to be trusted
    loaded = torch.jit.load(io.BytesIO(content), map_location="cpu")

    def run(images: torch.Tensor) -> Outputs:
        found = loaded(images)
        return found if isinstance(found, tuple) else (found,)

    return run


def _safetensors(program: Exported) -> bytes:
    if not isinstance(program.embedder, Embedder):
        raise InputError("--to safetensors: an adopted model's weights are in the file it came as")
    tensors = {name: tensor.contiguous() for name, tensor in program.embedder.state_dict().items()}
    settings = program._model.settings.model_dump_json()
    about = {**program.facts(), "mean": "127.5", "std": "127.5", "embedder": settings}
    return save(tensors, metadata=about)


def _run_safetensors(content: bytes) -> Runs:
    length = int.from_bytes(content[:8], "little")
    about = json.loads(content[8 : 8 + length])["__metadata__"]
    embedder = build_embedder(EmbedderSettings.model_validate_json(about["embedder"]))
    embedder.load_state_dict(load(content))
    embedder.eval()
    return lambda images: (embedder(images),)


@dataclass(frozen=True)
class Format:
    """A kind of file to export to."""

    endings: tuple[str, ...]
    write: Callable[[Exported], bytes]
    """Raises InputError where a package is missing, or the model cannot be written so."""
    read: Callable[[bytes], Runs]
    classes: bool = True
    """Whether a classifier can go along."""


FORMATS = {
    "onnx": Format((".onnx",), _onnx, _run_onnx),
    "torchscript": Format((".pt", ".ts"), _torchscript, _run_torchscript),
    "safetensors": Format((".safetensors",), _safetensors, _run_safetensors, classes=False),
}


def quantised(graph: bytes) -> bytes:
    """An ONNX graph with weights of 8 bits, and activations quantised while it runs."""
    onnx = package("onnx", "--int8")
    quantization = package("onnxruntime.quantization", "--int8")
    logging.disable(logging.WARNING)  # it advises a step that folds what was folded on export
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "int8.onnx"
            # unsigned: the CPU's integer convolution takes no others
            kind = quantization.QuantType.QUInt8
            model = onnx.load_model_from_string(graph)
            quantization.quantize_dynamic(model, file, weight_type=kind)
            return file.read_bytes()
    finally:
        logging.disable(logging.NOTSET)


@dataclass(frozen=True)
class Parity:
    """How far the vectors of an exported file are from the embedder's."""

    largest: float
    """The largest absolute difference of a number."""
    share: float
    """The largest difference of a vector, of its length."""
    cosine: float
    """The smallest cosine of two vectors of an image."""

    @classmethod
    def of(cls, ours: torch.Tensor, theirs: torch.Tensor) -> "Parity":
        """Of vectors [n, d], or scores [n, C], of the same images."""
        apart = ours - theirs
        share = apart.norm(dim=1) / ours.norm(dim=1).clamp_min(1e-12)
        # in double precision: a cosine of equal vectors is otherwise off in its seventh digit
        cosine = F.cosine_similarity(ours.double(), theirs.double())
        return cls(float(apart.abs().max()), float(share.max()), float(cosine.min()))

    @property
    def holds(self) -> bool:
        """Whether they are the same vectors but for rounding."""
        return self.share <= ALIKE  # not so of NaN

    def written(self) -> str:
        """It for people."""
        return f"max |difference| {self.largest:.2g}, min cosine {self.cosine:.7f}"


@torch.inference_mode()
def parities(model: Model, program: Exported, runs: Runs, images: torch.Tensor) -> list[Parity]:
    """Of each of the outputs for `images` [n, 3, h, w] uint8, by the model's own embedder."""
    embedder: Embedder | AdoptedEmbedder = model.embedder()
    ours: Outputs = (embedder(images).float(),)
    if program._decision is not None:
        directions = model.frozen_rows(Ranks()).weight.detach().float()
        ours = (*ours, program._decision.scores(model, ours[0], directions))
    together = runs(images)
    # one at a time, too: a batch is of any size
    alone = [torch.cat(parts) for parts in zip(*map(runs, images[:2].split(1)), strict=True)]
    pairs = zip(ours, together, alone, strict=True)
    return [
        Parity.of(torch.cat([own, own[:2]]), torch.cat([batch, singly]))
        for own, batch, singly in pairs
    ]


def random_images(size: tuple[int, int], count: int = 16) -> torch.Tensor:
    """[count, 3, *size] uint8, always the same."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=generator)
