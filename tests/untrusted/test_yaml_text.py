"""YAML says what it shows, or one line says why not."""

import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from launch.config.load import load_config
from untrusted.errors import InputError
from untrusted.yaml_text import dump_yaml, parse_yaml, yaml_documents

ROOT = Path(__file__).parents[2]
SHIPPED = sorted([*ROOT.glob("configs/*.yaml"), *ROOT.glob("monitoring/rules/*.yaml")])


def laughs(levels: int) -> str:
    first, *others = [
        f"  - &a{level} [{', '.join([f'*a{level - 1}'] * 9 if level else ['x', 'x'])}]\n"
        for level in range(levels)
    ]
    return "seeds:\n" + first + "".join(others)


@pytest.mark.reliability(
    12, "a key given twice, an alias that multiplies and deep nesting are one line with its number"
)
@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "the key a is given twice"),
        ("m:\n  x: {}\n  'x': {}\n", 3, "the key x is given twice"),
        (laughs(14), 6, "stand for more than"),
        ("a: " + "[" * 100_000, 1, "nested more than 50 deep"),
        ("- " * 60_000, 1, "nested more than 50 deep"),
        (laughs(2) + "  - " + "[" * 48 + "*a1" + "]" * 48 + "\n", 4, "nested more than 50 deep"),
        ("a: &x [*x]\n", 1, "holds itself"),
        ("a: *x\n", 1, "stands for nothing"),
        ("a: 1\n<<: {b: 2}\n", 2, "merge key"),
        ("a: " + "9" * 5_000, 1, "beyond 64 bits"),
        ("a: 0x" + "f" * 5_000, 1, "beyond 64 bits"),
        ("a: -9223372036854775809", 1, "beyond 64 bits"),
        ("a: 1e999", 1, "too large"),
        ("a: 010", 1, "write 10 or 0o10"),
        ("a: !!binary aGVsbG8=\n", 1, "the tag"),
        ("a: !!python/object/apply:os.system [ls]\n", 1, "the tag"),
        ("? [a, b]\n: c\n", 1, "a list or mapping as a key"),
        ("x: &k a\n*k : c\n", 2, "an alias"),
        ("a:\n  b\0c\n", 2, r"'\x00'"),
        ('a: 1\nb: "\\e]0;x\\a"\n', 2, r"'\x1b'"),
        ('a: 1\n"\\e[31mb": 1\n', 2, "is no key"),
        ("%TAG ! tag:x,2000:\n---\na: 1\n", 1, "a directive"),
        ("a: 1\nb: [\n", 3, "no YAML"),
        ("a: \ud800", 1, r"'\ud800'"),
    ],
)
def test_what_is_refused_names_the_file_and_the_line(text, line, words):
    with pytest.raises(InputError) as caught:
        parse_yaml(text, "demo.yaml")
    message = str(caught.value)
    assert message.startswith(f"demo.yaml, line {line}: ")
    assert words in message
    assert message.isprintable()
    assert len(message) < 200


def test_bytes_are_utf_8_with_or_without_a_mark():
    text = "name: Jos\u00e9\n"
    assert parse_yaml(text.encode("utf-8-sig"), "f") == {"name": "Jos\u00e9"}
    with pytest.raises(InputError, match=r"^f is UTF-16: save it as UTF-8$"):
        parse_yaml(text.encode("utf-16"), "f")
    with pytest.raises(InputError, match=r"^f, line 2 is not UTF-8"):
        parse_yaml(b"a: 1\nb: \xe9\n", "f")
    with pytest.raises(InputError, match="several documents"):
        parse_yaml("a: 1\n---\nb: 1\n", "f")
    with pytest.raises(InputError, match="larger than"):
        parse_yaml("a" * (1 << 21), "f")
    assert parse_yaml("# nothing\n", "f") is None


@pytest.mark.reliability(12, "on, yes, 1:30 and dates are texts, 1e-3 is a number, keys stay texts")
def test_scalars_are_those_of_yaml_1_2():
    told = parse_yaml(
        "[on, yes, 1:30, 2026-01-01, 1_000, 1e-3, .5, 0o17, 0x1F, -7, ~, True, '7', +.inf]", "f"
    )
    assert told == [
        "on", "yes", "1:30", "2026-01-01", "1_000", 0.001, 0.5, 15, 31, -7, None, True, "7",
        math.inf,
    ]  # fmt: skip
    assert parse_yaml("{on: 1, yes: 2, 010: 3, 1: 4, ~: 5, 1.0: 6}", "f") == {
        "on": 1, "yes": 2, "010": 3, "1": 4, "~": 5, "1.0": 6,
    }  # fmt: skip


def test_what_an_alias_stands_for_is_copied():
    told = parse_yaml("a: &x {k: [1]}\nb: *x\n", "f")
    told["a"]["k"].append(2)
    assert told["b"] == {"k": [1]}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_the_files_that_we_ship_hold_what_they_held(path):
    content = path.read_bytes()
    assert list(yaml_documents(content, path.name)) == list(yaml.safe_load_all(content))


_ODD = """on yes no y n null ~ 010 08 0o10 0x1f 1e3 1e-3 1.5 .5 1:30 1_000 2026-01-01 << = .inf
.NaN true False - ? : [ { # ! % @ ` & * -1 +1 0 00 0b1 --- ..."""
_TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12) | st.sampled_from(
    _ODD.split()
)
_KEYS = _TEXTS.filter(lambda text: bool(text) and text.isprintable())
_NUMBERS = st.integers(-(1 << 63), (1 << 63) - 1) | st.floats(allow_nan=False)
_VALUES = st.recursive(
    st.none() | st.booleans() | _NUMBERS | _TEXTS | st.text(st.sampled_from("ab \t\n:#'\"")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=12,
)


@given(_VALUES)
def test_what_is_written_reads_back(value):
    assert parse_yaml(dump_yaml(value), "f") == value


@given(_KEYS | _TEXTS)
def test_older_readers_read_the_same_text(text):
    assert yaml.safe_load(dump_yaml({"a": text})) == {"a": text}


_SIGNS = st.text(st.sampled_from("ab:-?[]{}&*!|>'\"%@#, \n\t0.~<"), max_size=40)


@given(_SIGNS | st.binary(max_size=40))
def test_any_text_is_a_value_or_one_line(content):
    message = ""
    try:
        parse_yaml(content, "f")
    except InputError as error:
        message = str(error)
    assert message == "" or message.isprintable()


@pytest.mark.reliability(12, "a run's file in which a key is twice is refused, and so is .inf")
def test_a_configuration_is_read_by_the_same_rules(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("dataset: d\nmethods: {on: {kind: finetune}, 10: {kind: fkd}}\n")
    assert list(load_config(path).methods) == ["on", "10"]
    for wrong in ("training.learning_rate=.inf", "seeds=[010]", "training.iterations=1:30"):
        with pytest.raises(InputError, match=wrong.partition("=")[0]) as caught:
            load_config(path, [wrong])
        assert str(caught.value).isprintable()
    path.write_text(
        "dataset: d\nmethods: {fkd: {}}\ntraining: {batch: 32}\ntraining: {batch: 64}\n"
    )
    with pytest.raises(InputError, match="line 4: the key training is given twice"):
        load_config(path)
    path.write_text(f"dataset: d\nmethods: {{{'a' * 300}: {{kind: fkd}}}}\n")
    with pytest.raises(InputError, match="up to 100 letters"):
        load_config(path)
