"""Embedders from outside as ONNX graphs: checked before onnxruntime reads them.

An accepted graph has one standard operator a node, holds all of its weights, and can neither name a
file nor contain code. The graph that is kept, and read by onnxruntime, is serialised from what was
checked: onnxruntime knows fields that our protobuf may not, and reads options from metadata.
"""

import math
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from data_shards.settings import InputError
from trainer.packages import package
from untrusted.protobuf import structure
from untrusted.text import printable

if TYPE_CHECKING:
    import onnx

Program = Callable[[torch.Tensor], torch.Tensor]
"""Pixels [b, 3, H, W] float32, as the model expects them, to its output [b, ...]."""

_NAMES = """
Abs Add And ArgMax ArgMin Attention AveragePool BatchNormalization Cast CastLike Ceil Celu Clip
Concat Constant ConstantOfShape Conv ConvInteger ConvTranspose Cos CumSum DepthToSpace
DequantizeLinear Div Dropout DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand EyeLike
Flatten Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool
GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization HardSigmoid HardSwish
Identity InstanceNormalization IsInf IsNaN LRN LayerNormalization LeakyRelu Less LessOrEqual Log
LogSoftmax LpNormalization LpPool MatMul MatMulInteger Max MaxPool Mean
MeanVarianceNormalization Min Mish Mod Mul Neg Not Or PRelu Pad Pow QLinearConv QLinearMatMul
QuantizeLinear RMSNormalization Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp
ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize
RotaryEmbedding Round ScatterElements ScatterND Selu Shape Sigmoid Sign Sin Size Slice Softmax
Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Swish Tanh ThresholdedRelu Tile TopK
Transpose Trilu Unsqueeze Upsample Where Xor
"""
OPERATORS = frozenset(_NAMES.split())
"""Allowed operators of the standard domain. None contains a graph, makes text, draws random numbers
or decodes images."""
_NODES = 20_000
"""More than any embedder has; the runtime takes minutes for some graphs of 100,000."""
_STRUCTURE = 16 << 20
"""Most bytes of a file that are not weights: nodes, names, notes. Parsed they may take 75 times as
much."""
_KINDS = {
    "model": {7: "graph"},
    "graph": {1: "node", 5: "tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor"},
    "tensor": dict.fromkeys((4, 5, 9, 10), ""),
}
"""The fields of a file that hold weights, by their numbers in onnx.proto.

Not int64_data and uint64_data: a byte of these becomes eight, and no embedder has many.
"""
_MEMORY = 8 << 30
"""Bytes that all graphs of a process may use while they run: many times a batch of a large one.
Where the machine has less than twice that, half of what it has."""
_ELEMENTS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_TEXT = "it computes with text, whose memory the runtime does not bound"
_registered = False


def checked(content: bytes, name: str) -> bytes:
    """Checks the graph in `content` and serialises it anew, without metadata.

    Raises InputError that names `name` and the remedy for anything but a graph as described above.
    """
    onnx = package("onnx", name)
    # before it is parsed: a limit on nodes that is checked afterwards comes too late
    try:
        beside = structure(content, _KINDS, "model")
    except ValueError as error:
        raise InputError(f"{name} cannot be read: it is no ONNX file: {error}") from error
    if beside > _STRUCTURE:
        raise InputError(
            f"{name} is refused: {beside:,} of its bytes are not weights, and {_STRUCTURE:,} can "
            "be; export the bare network, without notes on where its nodes come from"
        )
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except Exception as error:  # protobuf's error is of a package below
        raise InputError(f"{name} cannot be read: it is no ONNX file, or damaged") from error
    if reason := _reason(model, onnx):
        raise InputError(
            f"{name} is refused: {reason}; export the bare network, as standard operators and "
            "with its weights in the same file"
        )
    # what was not checked must not reach onnxruntime, which reads options from metadata
    model.DiscardUnknownFields()
    for described in (model, model.graph, *model.graph.node):
        del described.metadata_props[:]
    return model.SerializeToString()


def _reason(model: "onnx.ModelProto", onnx: Any) -> str:
    """Why a model is refused; empty if it is accepted."""
    if domains := {o.domain for o in model.opset_import} - {"", "ai.onnx"}:
        return f"it needs operators of {_shown(domains)}"
    if model.functions or model.training_info:
        return "it brings functions or training of its own"
    graph = model.graph
    if graph.sparse_initializer or graph.quantization_annotation:
        return "it has sparse or annotated weights"
    if not graph.node or len(graph.node) > _NODES:
        return f"it has {len(graph.node):,} nodes, and 1 to {_NODES:,} can be"
    kinds = onnx.AttributeProto
    plain = {kinds.FLOAT, kinds.INT, kinds.STRING, kinds.TENSOR}
    plain |= {kinds.FLOATS, kinds.INTS, kinds.STRINGS}
    for node in graph.node:
        if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
            return f"it has the operator {_shown({f'{node.domain}.{node.op_type}'.strip('.')})}"
        for given in node.attribute:
            # the declared type may be wrong: what counts is which fields are there
            if given.type not in plain or given.HasField("g") or given.graphs:
                return f"a {node.op_type} has a graph within, or an attribute of a kind of its own"
            to_text = (node.op_type, given.name, given.i) == ("Cast", "to", onnx.TensorProto.STRING)
            if to_text or given.name in ("value_string", "value_strings"):
                return _TEXT
            if given.ref_attr_name or given.HasField("sparse_tensor") or given.sparse_tensors:
                return f"a {node.op_type} has an attribute of a kind of its own"
    return next((why for tensor in _tensors(graph) if (why := _odd(tensor, onnx))), "")


def _shown(words: set[str]) -> str:
    return ", ".join(repr(word[:60]) for word in sorted(words))


def _tensors(graph: "onnx.GraphProto") -> Iterator["onnx.TensorProto"]:
    """Every tensor of a graph: its weights and those in attributes."""
    yield from graph.initializer
    for node in graph.node:
        for given in node.attribute:
            yield from given.tensors
            if given.HasField("t"):
                yield given.t


def _odd(tensor: "onnx.TensorProto", onnx: Any) -> str:
    """Why a tensor is refused; empty if it is accepted."""
    if tensor.data_location != onnx.TensorProto.DEFAULT or tensor.external_data:
        return "its weights are in another file"
    if tensor.data_type == onnx.TensorProto.STRING or tensor.string_data:
        return _TEXT
    if tensor.HasField("segment"):
        return "a weight is given in segments"
    if any(size < 0 for size in tensor.dims) or len(tensor.dims) > 16:
        return "a weight has an impossible shape"
    # a value takes four bits at least, so the file's size bounds the memory of any shape
    if math.prod(tensor.dims) > 2 * tensor.ByteSize():
        return "a weight is larger than what the file holds of it"
    return ""


def load_graph(content: bytes, name: str) -> Program:
    """The graph in `content` on the CPU, after `checked`. Raises InputError."""
    kept = checked(content, name)
    runtime = package("onnxruntime", name)
    _bound_memory(runtime)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4
    options.add_session_config_entry("session.use_env_allocators", "1")
    # spinning threads would take cores from the machine's other work
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = runtime.InferenceSession(kept, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime has an exception for each of its states
        raise InputError(f"{name} cannot be read: {first_line(error)}") from error
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(outputs) > 1:  # some give the norm of each vector beside it
        outputs = [output for output in outputs if output.shape[-1:] != [1]]
    if len(inputs) != 1 or len(outputs) != 1 or inputs[0].type not in _ELEMENTS:
        raise InputError(
            f"{name} takes {_described(session.get_inputs())} and gives "
            f"{_described(session.get_outputs())}: export it with one input of float images and "
            "one output, a vector for each"
        )
    kind, channels_last = _ELEMENTS[inputs[0].type], _channels_last(inputs[0].shape)

    def run(pixels: torch.Tensor) -> torch.Tensor:
        given = pixels.permute(0, 2, 3, 1) if channels_last else pixels
        for said, size in zip(inputs[0].shape[1:], given.shape[1:], strict=False):
            if isinstance(said, int) and said != size:
                raise InputError(
                    f"{name} takes images of {inputs[0].shape}, and is given {list(given.shape)}"
                )
        images = np.ascontiguousarray(given.numpy(), dtype=kind)
        try:
            (vectors,) = session.run([outputs[0].name], {inputs[0].name: images})
        except Exception as error:
            raise InputError(f"{name} cannot be run: {first_line(error)}") from error
        return torch.from_numpy(vectors)

    return run


def _channels_last(shape: list[Any]) -> bool:
    """Whether an input's shape is [b, H, W, 3], as TensorFlow exports it."""
    return len(shape) == 4 and shape[3] == 3 and shape[1] != 3


def _described(values: list[Any]) -> str:
    return ", ".join(f"{v.name[:40]!r} {v.type} {v.shape}" for v in values[:4]) or "nothing"


def _bound_memory(runtime: Any) -> None:
    """Limits the graphs of this process to `_MEMORY` bytes in all, at the first call.

    A few nodes can ask for any amount (Expand, Tile), and the kernel would kill the process.
    """
    global _registered
    if not _registered:
        kind = runtime.OrtAllocatorType.ORT_ARENA_ALLOCATOR
        info = runtime.OrtMemoryInfo("Cpu", kind, 0, runtime.OrtMemType.DEFAULT)
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        # strategy 1 extends by what is asked for: doubling would reach the bound at half of it
        most = {"max_mem": min(_MEMORY, memory // 2), "arena_extend_strategy": 1}
        arena = runtime.OrtArenaCfg(most)
        runtime.create_and_register_allocator(info, arena)
        _registered = True


def first_line(error: Exception) -> str:
    """The first line of an exception's message."""
    return printable((str(error).strip().splitlines() or [type(error).__name__])[0])
