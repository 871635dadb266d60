"""docs/reliability.md says what the tests say."""

from tests.reliability import KINDS, PAGE, claims, page


def test_the_table_of_inputs_is_up_to_date():
    text = PAGE.read_text(encoding="utf-8")
    assert page(text) == text, "python -m tests.reliability writes it anew"


def test_every_claim_is_of_a_kind_that_there_is():
    assert {kind for kind, _, _ in claims()} <= set(range(len(KINDS)))
