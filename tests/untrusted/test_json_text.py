"""JSON of a stranger."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from untrusted.json_text import parse_json

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(values)
def test_what_json_writes_is_read(value):
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode(errors="replace")) is not ...


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * 100_000, "deep"),
        ("[" * 100 + "]" * 100, "64 deep"),
        ('{"a": 1, "a": 2}', "'a' is given twice"),
        ("9" * 5000, "digits"),
        (b"\xff\xfe", "utf-8"),
        ("[" + "[]," * 1_300_000 + "[]]", "too many values"),
    ],
)
def test_what_would_harm_is_refused(text, why):
    with pytest.raises(ValueError, match=why):
        parse_json(text)


@pytest.mark.reliability(8, "JSON: the last of 200,000 keys given twice is found in one pass")
def test_a_key_given_twice_among_many_is_found_at_once():
    keys = [f"{number:06d}" for number in range(200_000)]
    text = "{" + ",".join(f'"{key}":0' for key in [*keys, keys[-1]]) + "}"
    with pytest.raises(ValueError, match="'199999' is given twice"):  # it was days
        parse_json(text)
