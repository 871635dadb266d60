"""The page of faults."""

from tests.chaos.conftest import page


def test_a_fault_tried_twice_is_one_line_in_the_order_of_the_tests():
    whole = "# Head\n<!-- faults -->\nold\n<!-- /faults -->\nrest\n"
    text = page(whole, [("b", "x|y", "1"), ("a", "x", "2"), ("b", "x|y", "1")])
    assert text.splitlines()[4:6] == ["| b | x\\|y | 1 |", "| a | x | 2 |"]
    assert text.splitlines()[-1] == "rest"
