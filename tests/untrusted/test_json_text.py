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
    ],
)
def test_what_would_harm_is_refused(text, why):
    with pytest.raises(ValueError, match=why):
        parse_json(text)
