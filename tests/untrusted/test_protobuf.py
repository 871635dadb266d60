"""What a protobuf file would cost is counted as its parser would find it, and never crashes."""

from contextlib import suppress

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from trainer.onnx_graphs import _KINDS
from untrusted.protobuf import structure


@given(st.lists(st.integers(0, 2000), max_size=5), st.integers(0, 20))
def test_all_but_the_numbers_of_weights_is_counted(sizes, nodes):
    weights = [
        numpy_helper.from_array(np.zeros(size, np.uint8), f"w{number}")
        for number, size in enumerate(sizes)
    ]
    held = [helper.make_node("Constant", [], [f"c{n}"], value=t) for n, t in enumerate(weights)]
    made = [helper.make_node("Relu", ["x"], [f"y{number}"]) for number in range(nodes)]
    model = helper.make_model(helper.make_graph([*made, *held], "g", [], [], weights))
    content = model.SerializeToString()
    assert structure(content, _KINDS, "model") == len(content) - 2 * sum(sizes)


@given(st.binary(max_size=200))
def test_any_bytes_are_counted_or_refused(content):
    with suppress(ValueError):
        assert 0 <= structure(content, _KINDS, "model") <= len(content)
