"""An ONNX graph's weights in a network of this product: what is to be trained on.

Layers are matched in the order in which they are executed, and must have equal shapes. Whether the
network then does what the graph does is for the caller to compare.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from data_shards.settings import InputError
from trainer.backbones import Embedder
from trainer.onnx_graphs import checked

_LAYERS = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.BatchNorm1d, nn.PReLU)
_KINDS = {
    "Conv": "conv",
    "Gemm": "conv",
    "MatMul": "conv",
    "BatchNormalization": "norm",
    "PRelu": "slope",
}
_RESHAPES = {"Identity", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Dropout"}


@dataclass(frozen=True)
class _Node:
    """A layer of the graph."""

    kind: str
    """conv (a linear layer is one, too), norm, or slope."""
    tensors: list[torch.Tensor]
    epsilon: float
    reads: str
    """What enters it, and below what it makes: names of the graph, the same through reshapes."""
    makes: str


def take_graph(embedder: Embedder, content: bytes, size: tuple[int, int], source: str) -> bool:
    """Puts the weights of the graph in `content` into `embedder`, and returns whether its batch
    normalisations had been folded into convolutions, so that their statistics are lost.

    `size` is that of its images (height, width). Raises InputError that names `source`.
    """
    nodes, folded = list(_nodes(content, source)), False
    shift = before = None  # the bias of the convolution just passed, and what it makes
    with torch.no_grad():
        for layer in _executed(embedder, size):
            kind = _kind(layer)
            fits = bool(nodes) and nodes[0].kind == kind
            if fits and kind == "norm" and before is not None:
                # not the one that an iresnet's next block begins with, where its own was folded
                fits = nodes[0].reads == before
            node = nodes.pop(0) if fits else None
            before = node.makes if node is not None and kind == "conv" else None
            if kind == "norm":
                folded |= node is None
                _set_norm(layer, node, shift, source)
                shift = None
                continue
            if node is None:
                found = nodes[0].kind if nodes else "nothing"
                raise _other(source, f"a {type(layer).__name__} is {found} there")
            weight = node.tensors[0]
            if weight.numel() != layer.weight.numel() or weight.shape[0] != layer.weight.shape[0]:
                raise _other(
                    source, f"{list(weight.shape)} stands where it has {list(layer.weight.shape)}"
                )
            layer.weight.copy_(weight.view_as(layer.weight))
            shift = node.tensors[1] if kind == "conv" and len(node.tensors) > 1 else None
            if shift is not None and layer.bias is not None:
                layer.bias.copy_(shift)
                shift = None
    if nodes:
        raise _other(source, f"{len(nodes):,} of its layers are left over")
    return folded


def _other(source: str, why: str) -> InputError:
    return InputError(
        f"{source} is not of this --architecture: {why}; give another one, or adopt the graph as "
        "it is, without --architecture"
    )


def _kind(layer: nn.Module) -> str:
    if isinstance(layer, nn.PReLU):
        return "slope"
    return "conv" if isinstance(layer, nn.Conv2d | nn.Linear) else "norm"


def _executed(embedder: Embedder, size: tuple[int, int]) -> list[Any]:
    """The layers with weights, in the order in which an image passes them."""
    order: list[Any] = []
    layers = [module for module in embedder.modules() if isinstance(module, _LAYERS)]
    hooks = [m.register_forward_hook(lambda own, *_: order.append(own)) for m in layers]
    try:
        with torch.inference_mode():
            embedder.eval()(torch.zeros(1, 3, *size, dtype=torch.uint8))
    finally:
        for hook in hooks:
            hook.remove()
    return order


def _set_norm(layer: Any, node: _Node | None, shift: torch.Tensor | None, source: str) -> None:
    """The node's normalisation, behind a convolution whose bias is `shift`; without a node, what is
    left of a folded one: the bias."""
    if node is None:
        scale, mean = torch.ones_like(layer.weight), torch.zeros_like(layer.weight)
        bias, variance = mean if shift is None else shift, scale - layer.eps
    else:
        scale, bias, mean, variance = node.tensors
        mean = mean if shift is None else mean - shift
        variance = variance + node.epsilon - layer.eps  # the layer has its own
    if scale.shape != layer.weight.shape:
        raise _other(source, f"{len(scale)} channels stand where it has {len(layer.weight)}")
    for own, value in (
        (layer.weight, scale),
        (layer.bias, bias),
        (layer.running_mean, mean),
        (layer.running_var, variance),
    ):
        own.copy_(value)


def _nodes(content: bytes, source: str) -> Iterator[_Node]:
    """The graph's layers with weights, in its order, which is one of execution."""
    import onnx
    from onnx import numpy_helper

    model = onnx.ModelProto()
    model.ParseFromString(checked(content, source))
    held = {t.name: t for t in model.graph.initializer}
    alias: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type == "Identity" and node.input[0] in held:  # of weights that are alike
            held[node.output[0]] = held[node.input[0]]
        if node.op_type in _RESHAPES:
            alias[node.output[0]] = alias.get(node.input[0], node.input[0])
        between = node.op_type == "MatMul" and node.input[1] not in held
        if node.op_type not in _KINDS or between:  # a product of two inputs has no weights
            continue
        try:
            weights = [numpy_helper.to_array(held[name]) for name in node.input[1:] if name]
        except KeyError as error:
            raise _other(source, f"a {node.op_type} computes its weights") from error
        given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type in ("Gemm", "MatMul") and not given.get("transB"):
            weights[0] = weights[0].T
        if given.get("alpha", 1.0) != 1.0 or given.get("beta", 1.0) != 1.0:
            raise _other(source, "a Gemm has factors")
        tensors = [torch.from_numpy(np.array(w, dtype=np.float32)) for w in weights]
        yield _Node(
            kind=_KINDS[node.op_type],
            tensors=tensors,
            epsilon=given.get("epsilon", 1e-5),
            reads=alias.get(node.input[0], node.input[0]),
            makes=node.output[0],
        )
