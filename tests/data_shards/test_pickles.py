"""Pickles of plain values are read, and one that asks for more runs nothing."""

import io
import os
import pickle
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.sources.pickles import Array, Refused, read_pickle

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
TRACE = "a-pickle-ran-this"
KEYS = st.text(max_size=3) | st.integers()
VALUES = st.recursive(
    st.booleans() | st.integers() | st.binary(max_size=9) | st.text(max_size=9) | st.none(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(KEYS, inner, max_size=4)
    ),
    max_leaves=12,
)


class Runs:
    """Unpickles into whatever call it is given."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call = (call, arguments)

    def __reduce__(self) -> Any:
        return self.call


@given(VALUES, st.sampled_from(PROTOCOLS[3:]))
def test_plain_values_come_back_as_they_were(value, protocol):
    assert read_pickle(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_arrays_of_bytes_are_described(protocol):
    value = {"data": np.arange(6, dtype=np.uint8).reshape(2, 3)}
    found = read_pickle(pickle.dumps(value, protocol))["data"]
    assert isinstance(found, Array)
    assert (found.shape, found.code, found.content) == ((2, 3), "u1", bytes(range(6)))


def test_a_dictionary_as_python_2_wrote_it():
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
        b"(K\x01(K\x01K\x03tcnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89U\x03\xff\x00\x01tb"
    )
    content = b"\x80\x02}q\x01(U\x0bfine_labelsq\x02]q\x03K\x07aU\x04dataq\x04" + array + b"u."
    found = read_pickle(content)
    assert found[b"fine_labels"] == [7]
    assert (found[b"data"].shape, found[b"data"].content) == ((1, 3), b"\xff\x00\x01")


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("thing", "named"),
    [
        (Runs(os.system, f"touch {TRACE}"), "system"),
        (Runs(eval, f"open({TRACE!r}, 'w')"), "eval"),
        (Runs(io.open, TRACE, "w"), "open"),
        (Path("a"), "Path"),
    ],
)
def test_a_pickle_that_asks_for_more_is_refused_by_name(
    tmp_path, monkeypatch, protocol, thing, named
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused, match=named):
        read_pickle(pickle.dumps({"labels": [1], "data": thing}, protocol))
    assert not (tmp_path / TRACE).exists()


@pytest.mark.parametrize(
    "program",
    [
        b"cnumpy\ndtype\n(dI1\nbI1\n.",
        b"(cnumpy\ndtype\nX\x02\x00\x00\x00u1o.",
        b"Pabc\n.",
        b"(i\nos\nsystem\n.",
        b"r\xff\xff\xff\x7fN.",
        b"\x96\xff\xff\xff\xff\xff\xff\xff\x0f.",
        b"]I1\nI2\ns.",
        b"}(I1\nu.",
        b"}(]I1\nu.",
        b"(]I1\nd.",
        b"u.",
        b"s.",
    ],
)
def test_an_odd_program_is_refused_without_taking_memory(program):
    with pytest.raises(ValueError):
        read_pickle(program)


@settings(max_examples=300)
@given(st.integers(0, 2**32), st.sampled_from(PROTOCOLS))
def test_flipped_bytes_give_a_value_or_a_value_error(seed, protocol):
    draw = random.Random(seed)
    value = {"fine_labels": [1, 2], "data": np.arange(5, dtype=np.uint8), "names": [b"a", "b"]}
    content = bytearray(pickle.dumps(value, protocol))
    for _ in range(draw.randrange(1, 7)):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    if draw.random() < 0.2:
        del content[draw.randrange(len(content)) :]
    with suppress(ValueError):
        read_pickle(bytes(content))


# a tuple of itself twice, again and again: 2^100 parts in 300 bytes
DOUBLED = b"K\x01" + b"q\x00h\x00\x86" * 100


@pytest.mark.parametrize(
    "program",
    [
        b"}" + DOUBLED + b"K\x01s.",  # as a dictionary's key
        DOUBLED + b"X\x01\x00\x00\x00x\x93.",  # as a module's name
        b"cnumpy\ndtype\n" + DOUBLED + b"\x85R.",  # as an element type
        b"}" + b")" + b"\x85" * 200_000 + b"K\x01s.",  # deep, as a key
        b"cnumpy._core.numeric\n_frombuffer\n(C\x01xcnumpy\ndtype\nX\x02\x00\x00\x00u1\x85R"
        b"X\x01\x00\x00\x00x\x85X\x01\x00\x00\x00CtR.",  # a shape of text
    ],
)
@pytest.mark.reliability(10, "a pickle's values are never hashed, compared or shown as a whole")
def test_a_few_bytes_cannot_ask_for_endless_work(program):
    with pytest.raises(ValueError):
        read_pickle(program)


def test_copies_are_counted():
    text = b"X\x10\x27\x00\x00" + b"a" * 10_000 + b"q\x00"
    copy = b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R"
    with pytest.raises(Refused, match="over and over"):
        read_pickle(b"(" + text + copy * 1000 + b"t.")
