"""Weights from outside for a network of this product: a state dict, by the field's names or ours.

Ours are ``trunk.``, ``project.`` and ``norm.``. Of others, torchvision's ResNets and the released
IBN-a ones (whose classifier ``fc`` is left out), InsightFace's iresnets and Torchreid's osnet are
known. Prefixes that all names share (``module.``, ``backbone.``) are left out.
"""

from pathlib import Path
from typing import Annotated

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from data_shards.files import pinned_sha256
from data_shards.settings import UNDECIDING, InputError, Settings
from trainer.backbones import Embedder, EmbedderSettings
from trainer.networks import NETWORKS
from untrusted.files import read_bytes

_FILE_BYTES = 1 << 34
"""The largest file of weights, 16 GiB."""
_OWN = ("trunk.", "project.", "norm.")
_SHOWN = 3
"""How many names an error repeats."""
Tensors = dict[str, torch.Tensor]


class StartSettings(Settings):
    """Weights that trainings begin with."""

    file: Annotated[Path, UNDECIDING]
    """A state dict, .safetensors. It counts by its content, wherever it lies, and every machine of
    the run must find it."""
    sha256: str | None = None
    """Of `file`; a file with another content is refused. None: filled in when the run begins."""

    def pinned(self) -> "StartSettings":
        """These settings with `sha256` filled in. Raises InputError."""
        remedy = "give a file of weights, or leave the key out"
        found = pinned_sha256("start.file", self.file, self.sha256, remedy)
        return self.model_copy(update={"sha256": found})


def read_state_dict(file: Path) -> Tensors:
    """The tensors of a .safetensors file. Raises InputError; pickles are not read."""
    if file.suffix != ".safetensors":
        raise InputError(
            f"{file} is no .safetensors file: save the weights as one, by "
            'safetensors.torch.save_file(network.state_dict(), "weights.safetensors")'
        )
    try:
        return load(read_bytes(file, _FILE_BYTES))
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise InputError(f"{file} is no safetensors file, or is damaged: {error}") from error


def without_prefix(tensors: Tensors, known: set[str]) -> Tensors:
    """`tensors` without a first part that all names share and the network's names, `known`, lack.

    Such as DistributedDataParallel's ``module.``, or other trainers' ``backbone.`` and ``model.``.
    """
    for _ in range(4):  # they may be nested
        if len({name.partition(".")[0] for name in tensors}) != 1 or known & tensors.keys():
            break
        tensors = {name.partition(".")[2]: tensor for name, tensor in tensors.items()}
    return tensors


def load_weights(
    embedder: Embedder, settings: EmbedderSettings, given: Tensors, source: str
) -> None:
    """Puts the weights `given` into `embedder`, of `settings`.

    Those of a trunk alone leave the projection as it is. Raises InputError that names `source`, the
    first tensors that are missing, not known or of another shape, and the remedy.
    """
    own = embedder.state_dict()
    tensors = renamed(without_prefix(given, set(own)), settings)
    # a bias in front of batch normalisation is a shift of its running mean
    shift = tensors.pop("project.bias", None)
    if shift is not None and "norm.running_mean" in tensors:
        tensors["norm.running_mean"] = tensors["norm.running_mean"] - shift
    wanted = {name for name in own if not name.endswith("num_batches_tracked")}
    if not any(name.startswith(("project.", "norm.")) for name in tensors):
        wanted = {name for name in wanted if name.startswith("trunk.")}
    else:
        wanted -= {"activation.eta"}  # a released network has none
    _check(
        own,
        tensors,
        wanted,
        f"{source} does not fit embedder.architecture = {settings.architecture}",
    )
    embedder.load_state_dict({name: tensors.get(name, tensor) for name, tensor in own.items()})


def renamed(given: Tensors, settings: EmbedderSettings) -> Tensors:
    """`given` by this product's names, without the classifier of what it was trained on."""
    if any(name.startswith(_OWN) for name in given):
        return dict(given)
    network = NETWORKS.get(settings.architecture)
    heads = {} if network is None else {old: new for new, old in network.head.items()}
    left_out = ("classifier",) if network is not None else ("classifier", "fc")
    renamed = {}
    for name, tensor in given.items():
        part, _, last = name.rpartition(".")
        if part in heads:
            renamed[f"{heads[part]}.{last}"] = tensor
        elif part not in left_out:
            renamed[f"trunk.{name}"] = tensor
    return renamed


def _check(own: Tensors, given: Tensors, wanted: set[str], what: str) -> None:
    """Raises InputError when `given` lacks one of `wanted`, or has one that is none of `own`'s."""
    missing = [name for name in own if name in wanted and name not in given]
    unknown = [name for name in given if name not in own]
    shapes = [
        f"{name} {_by(given[name])} for {_by(own[name])}"
        for name in own
        if name in given and given[name].shape != own[name].shape
    ]
    for lacks, names, remedy in (
        ("misses", missing, "give the architecture that it is of, or rename the tensors"),
        ("has unknown", unknown, "leave them out, or give the architecture that it is of"),
        ("has", shapes, "set embedder.dimension, or the architecture, to what it is of"),
    ):
        if names:
            more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
            raise InputError(f"{what}: it {lacks} {', '.join(names[:_SHOWN])}{more}: {remedy}")
    if not all(bool(given[name].isfinite().all()) for name in given):
        raise InputError(f"{what}: it has weights that are not finite")


def _by(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "one number"
