"""Student's t against scipy's, and intervals of paired differences."""

import numpy as np
import pytest
from scipy import stats

from monitoring.intervals import half_width, paired, student_t


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_student_t_is_scipys(confidence):
    for freedom in (*range(1, 40), 200):
        theirs = stats.t.ppf((1 + confidence) / 2, freedom)
        assert student_t(freedom, confidence) == pytest.approx(theirs, rel=1e-9)


def test_an_interval_is_that_of_a_one_sample_t_test():
    values = [3.0, 5.5, 4.0, 9.0]
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert half_width(values) == pytest.approx((high - low) / 2)
    assert half_width([3.0]) is None and half_width([3.0, 3.0]) == 0


def test_differences_are_paired_by_seed():
    these, those = {0: 10.0, 1: 20.0, 2: 31.0, 7: 1.0}, {2: 29.0, 1: 19.0, 0: 9.0, 5: 4.0}
    found = paired(these, those)
    left, right = np.array([10.0, 20.0, 31.0]), np.array([9.0, 19.0, 29.0])
    low, high = stats.ttest_rel(left, right).confidence_interval(0.95)
    told = found.values()
    assert told["mean"] == pytest.approx(4 / 3) and told["seeds"] == 3
    assert (told["low"], told["high"]) == (pytest.approx(low), pytest.approx(high))
    assert paired({0: 3.0}, {0: 1.0}).values() == {"mean": 2.0, "seeds": 1}
    assert paired({0: 3.0}, {1: 1.0}) is None
