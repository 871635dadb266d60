"""The page of faults."""

from tests.chaos.conftest import page


def test_a_fault_tried_twice_is_one_line_in_the_order_of_the_tests():
    text = page([("b", "x|y", "1"), ("a", "x", "2"), ("b", "x|y", "1")])
    assert text.splitlines()[-2:] == ["| b | x\\|y | 1 |", "| a | x | 2 |"]
