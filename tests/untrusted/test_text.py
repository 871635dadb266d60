"""Text that reaches people: nothing in it steers a terminal, and no password is in it."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from untrusted.errors import InputError
from untrusted.text import holds_secret, printable, redacted


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


@pytest.mark.parametrize(
    "url",
    [
        "s3://me:hunter2@host/x",
        "https://token@host/x",
        "HTTPS://token@host/x",
        "http://h/x?a=1&token=abc",
        "https://h/x?X-Amz-Signature=abc",
        "simplecache::https://a:b@h/x",
    ],
)
@pytest.mark.reliability(7, "a URL with a password is refused before anything is written or asked")
def test_a_url_with_a_password_is_known(url):
    assert holds_secret(url)


@pytest.mark.parametrize(
    "url", ["ssh://me@host/x", "s3://bucket/a@b", "https://h/a@b", "abfs://box@account/x", "a:b@c"]
)
def test_a_url_without_one_is_not(url):
    assert not holds_secret(url)


@pytest.mark.reliability(7, "errors, logs, events and stack traces leave out what looks secret")
def test_errors_show_no_passwords():
    assert str(InputError("s3://me:hunter2@host/x is not there")) == "s3://***@host/x is not there"
    again = pickle.loads(pickle.dumps(InputError("https://a:b@h is damaged")))
    assert str(again) == "https://***@h is damaged"


@pytest.mark.parametrize("part", ["token", "://a:", "?key=", "authorization: ", "a.", "secret="])
def test_redacting_takes_no_longer_for_hostile_text(part):
    """Bounded by the length: a pattern that goes back and forth would not end within the hour."""
    text = part * (200_000 // len(part))
    assert redacted(text)
