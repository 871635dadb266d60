"""Text that reaches people: nothing in it steers a terminal, and no password is in it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from untrusted.text import printable, redacted


@given(st.text(st.characters(categories=["Cc", "Cf", "Cs", "L", "Zl"])))
def test_nothing_that_steers_a_terminal_is_left(text):
    shown = printable(text)
    assert shown.isprintable()
    assert printable(shown) == shown


def test_what_people_write_stays_as_it_is():
    assert printable("Ana María 張 [/] ✓ naïve") == "Ana María 張 [/] ✓ naïve"
    assert printable("a\n\x1b]0;x\x07", keep="\n") == "a\n\\x1b]0;x\\x07"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("s3://me:hunter2@host/x", "s3://***@host/x"),
        ("https://me:p@ss:w@host/x", "https://***@host/x"),
        ("https://token@host/x", "https://***@host/x"),
        ("http://h/x?a=1&token=abc&b=2", "http://h/x?a=1&token=***&b=2"),
        ("http://h/x?X-Amz-Signature=abc", "http://h/x?X-Amz-Signature=***"),
        ("https://host/a@b and mail me@x.org", "https://host/a@b and mail me@x.org"),
    ],
)
def test_passwords_of_urls_are_not_shown(given, shown):
    assert redacted(given) == shown
    assert redacted(f"cannot open '{given}': no") == f"cannot open '{shown}': no"
