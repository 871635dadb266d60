"""ONNX graphs of strangers: standard operators and their weights, and nothing else."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.defs import get_all_schemas_with_history

from data_shards.settings import InputError
from trainer.onnx_graphs import OPERATORS, checked, load_graph

SIZE = (8, 8)
WEIGHT = np.random.default_rng(0).normal(size=(192, 4)).astype(np.float32)
FLAT = helper.make_node("Flatten", ["x"], ["f"], axis=1)
PRODUCT = helper.make_node("MatMul", ["f", "W"], ["y"])
PIXELS = torch.randn(5, 3, *SIZE, generator=torch.Generator().manual_seed(0))


def weight():
    return numpy_helper.from_array(WEIGHT, "W")


def graph(nodes=(FLAT, PRODUCT), weights=None, shape=("n", 3, *SIZE), outputs=("y",), kind=1):
    given = helper.make_tensor_value_info("x", kind, shape)
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    held = [weight()] if weights is None else weights
    whole = helper.make_graph(nodes, "g", [given], made, held)
    return helper.make_model(whole, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def vectors(model, pixels=PIXELS):
    return load_graph(model.SerializeToString(), "net.onnx")(pixels)


def test_a_plain_graph_gives_its_vectors():
    expected = PIXELS.flatten(1) @ torch.from_numpy(WEIGHT)
    torch.testing.assert_close(vectors(graph()), expected)


def test_a_graph_with_channels_last_is_given_its_images_so():
    expected = PIXELS.permute(0, 2, 3, 1).flatten(1) @ torch.from_numpy(WEIGHT)
    torch.testing.assert_close(vectors(graph(shape=("n", *SIZE, 3))), expected)


def test_of_vectors_and_their_norms_the_vectors_are_taken():
    norm = helper.make_node("ReduceL2", ["y"], ["l"], axes=[1], keepdims=1)
    model = graph((FLAT, PRODUCT, norm), outputs=("y", "l"))
    model.graph.output[1].CopyFrom(helper.make_tensor_value_info("l", 1, ["n", 1]))
    torch.testing.assert_close(vectors(model), vectors(graph()))
    with pytest.raises(InputError, match=r"gives 'y' tensor\(float\).*'f' tensor\(float\)"):
        vectors(graph(outputs=("y", "f")))


def test_half_precision_is_converted():
    cast = helper.make_node("Cast", ["x"], ["c"], to=TensorProto.FLOAT)
    flat = helper.make_node("Flatten", ["c"], ["f"], axis=1)
    model = graph((cast, flat, PRODUCT), kind=TensorProto.FLOAT16)
    torch.testing.assert_close(vectors(model), vectors(graph()), rtol=0.01, atol=0.01)


def test_every_allowed_operator_is_a_standard_one_without_a_graph_within():
    kinds = onnx.defs.OpSchema.AttrType
    within = {kinds.GRAPH, kinds.GRAPHS, kinds.SPARSE_TENSOR}
    standard = {
        schema.name
        for schema in get_all_schemas_with_history()
        if schema.domain == "" and not {a.type for a in schema.attributes.values()} & within
    }
    # Constant may hold a sparse tensor, which is looked for; Swish is of a newer set than some have
    assert standard | {"Constant", "Swish"} >= OPERATORS


def external(model):
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "passwd"


def external_in_attribute(model):
    node = helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(WEIGHT, "k"))
    node.attribute[0].t.external_data.add().key = "location"
    model.graph.node.append(node)


def within(model):
    inner = graph().graph
    model.graph.node.append(helper.make_node("If", ["f"], ["z"], then_branch=inner))


def hidden_within(model):
    """The attribute says that it is a number."""
    node = helper.make_node("Relu", ["f"], ["z"])
    attribute = node.attribute.add()
    attribute.name, attribute.type = "alpha", onnx.AttributeProto.INT
    attribute.g.CopyFrom(graph().graph)
    model.graph.node.append(node)


def function(model):
    imports = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("own", "F", ["a"], ["b"], [], imports))


def negative(model):
    model.graph.initializer[0].dims[0] = -192


def huge(model):
    model.graph.initializer[0].dims[0] = 1 << 40


def operator(name, domain=""):
    def add(model):
        model.graph.node.append(helper.make_node(name, ["f"], ["z"], domain=domain))

    add.__name__ = name
    return add


ATTACKS = {
    external: "in another file",
    external_in_attribute: "in another file",
    within: "operator 'If'",
    hidden_within: "graph within",
    function: "functions",
    negative: "impossible shape",
    huge: "larger than what the file holds",
    operator("Loop"): "operator 'Loop'",
    operator("RandomNormal"): "operator 'RandomNormal'",
    operator("ImageDecoder"): "operator 'ImageDecoder'",
    operator("Gelu", "com.microsoft"): "operator 'com.microsoft.Gelu'",
    lambda model: model.opset_import.add(domain="own", version=1): "operators of 'own'",
    lambda model: model.training_info.add(): "training",
    lambda model: model.graph.ClearField("node"): "0 nodes",
    lambda model: model.graph.sparse_initializer.add(): "sparse",
}


@pytest.mark.parametrize(("attack", "words"), ATTACKS.items())
@pytest.mark.reliability(
    5, "ONNX: external data, operators off a list, graphs within and impossible shapes are refused"
)
def test_what_is_more_than_operators_and_weights_is_refused(attack, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where external data would be looked for
    (tmp_path / "passwd").write_bytes(WEIGHT.tobytes())
    model = graph()
    attack(model)
    with pytest.raises(InputError, match=rf"net.onnx is refused: .*{words}"):
        vectors(model)


def test_what_the_reader_does_not_know_does_not_reach_the_runtime():
    model = graph()
    model.metadata_props.add(key="ort_config", value='{"session_options": {}}')
    unknown = b"\xfa\x7f\x03abc"  # field 2047, three bytes
    kept = checked(model.SerializeToString() + unknown, "net.onnx")
    assert b"ort_config" not in kept and unknown not in kept
    assert kept == checked(kept, "net.onnx")


def long_text(model):
    model.graph.initializer.append(helper.make_tensor("t", TensorProto.STRING, [1], [b"0" * 999]))


def text_in_attribute(model):
    text = helper.make_tensor("t", TensorProto.STRING, [1], [b"0" * 999])
    model.graph.node.append(helper.make_node("Constant", [], ["t"], value=text))


def text_of_a_constant(model):
    model.graph.node.append(helper.make_node("Constant", [], ["t"], value_string="0" * 999))


def texts_of_a_constant(model):
    model.graph.node.append(helper.make_node("Constant", [], ["t"], value_strings=["0" * 999]))


def numbers_to_text(model):
    model.graph.node.append(helper.make_node("Cast", ["f"], ["t"], to=TensorProto.STRING))


TEXTS = [long_text, text_in_attribute, text_of_a_constant, texts_of_a_constant, numbers_to_text]


@pytest.mark.parametrize("attack", TEXTS)
@pytest.mark.reliability(
    5, "ONNX: text is refused: a megabyte of it, gathered 10,000 times, took memory without bound"
)
def test_text_in_a_graph_is_refused(attack):
    model = graph()
    attack(model)
    with pytest.raises(InputError, match="computes with text"):
        checked(model.SerializeToString(), "net.onnx")


@pytest.mark.parametrize(
    "nodes",
    [
        [helper.make_node("Expand", ["y", "s"], ["z"])],
        [helper.make_node("ConstantOfShape", ["s"], ["z"])],
    ],
)
def test_a_graph_that_asks_for_terabytes_ends_with_an_error(nodes):
    shape = numpy_helper.from_array(np.array([1 << 20, 1 << 20, 5, 4]), "s")
    model = graph((FLAT, PRODUCT, *nodes), [weight(), shape], outputs=("z",))
    with pytest.raises(InputError, match=r"cannot be run: .*(memory|alloc)"):
        vectors(model)


def test_damaged_files_are_refused_in_one_line():
    whole = graph().SerializeToString()
    for content in (b"", b"torn", whole[:100], b"\x3a" * 1000):
        with pytest.raises(InputError) as caught:
            vectors(onnx_bytes(content))
        assert str(caught.value).isprintable()


class onnx_bytes:
    """Serialises into what it was given."""

    def __init__(self, content):
        self.SerializeToString = lambda: content


@pytest.mark.reliability(
    5, "ONNX: what a file would become in memory is counted before it is parsed, and bounded"
)
@pytest.mark.parametrize("length", [2 << 20, 20 << 20])
def test_a_file_of_millions_of_empty_nodes_is_refused_before_it_is_parsed(length, monkeypatch):
    monkeypatch.setattr(onnx, "ModelProto", None)  # there is nothing to parse it with
    empty = b"\x0a\x00" * (length // 2)
    whole = onnx.GraphProto(doc_string=" " * len(empty)).SerializeToString()
    content = b"\x3a" + whole[1 : -len(empty)] + empty  # field 7, the graph
    with pytest.raises(InputError, match=r"1,000,000 fields|of its bytes are not weights"):
        checked(content, "net.onnx")


def test_the_runtime_reads_no_notes_of_nodes():
    model = graph()
    model.graph.metadata_props.add(key="hint", value="x")
    model.graph.node[0].metadata_props.add(key="hint", value="x")
    assert b"hint" not in checked(model.SerializeToString(), "net.onnx")


def test_a_graph_for_images_of_another_size_names_its_own():
    with pytest.raises(InputError, match=r"takes images of \['n', 3, 8, 8\]"):
        vectors(graph(), torch.zeros(2, 3, 16, 16))
