"""Files of runs that grow, are cut, damaged, swapped, or lead elsewhere."""

import itertools
import json
import math
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.live.files import Records, last_record
from monitoring.live.thinning import Curve
from monitoring.live.timeline import layout
from untrusted.files import open_regular, read_bytes


@given(
    lines=st.lists(st.sampled_from([b'{"a": 1}', b'{"b": "\xc3\xa9"}', b"[]", b"{", b"", b"\xff"])),
    cuts=st.lists(st.integers(0, 200)),
    limit=st.integers(12, 60),
)
def test_a_file_that_grows_by_bits_gives_each_record_once(tmp_path_factory, lines, cuts, limit):
    whole = b"".join(line + b"\n" for line in lines) + b'{"cut": '
    path = tmp_path_factory.mktemp("records") / "metrics.jsonl"
    path.write_bytes(b"")
    records, got = Records(path.parent, path), []
    written = 0
    for cut in [*sorted(cuts), len(whole)]:
        with path.open("ab") as file:
            file.write(whole[written : min(cut, len(whole))])
        written = max(written, min(cut, len(whole)))
        got += records.read(limit)[0]
        while records.behind:
            got += records.read(limit)[0]
    good = [line for line in lines if line.startswith(b'{"')]
    assert got == [json.loads(line) for line in good]
    assert records.damaged == sum(bool(line) for line in lines) - len(good)


def test_what_was_read_is_not_read_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"n": 1}\n')
    records = Records(tmp_path, path)
    assert records.read() == ([{"n": 1}], True)
    with path.open("r+b") as file:
        file.write(b'{"n": 9}\n{"n": 2}\n')
    assert records.read() == ([{"n": 2}], False)


@pytest.mark.parametrize("swap", ["shorter", "replaced"])
def test_a_file_begun_anew_is_read_anew(tmp_path, swap):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"n": 1}\n{"n": 2}\n')
    records = Records(tmp_path, path)
    records.read()
    if swap == "shorter":
        path.write_bytes(b'{"n": 3}\n')
    else:
        (tmp_path / "other").write_bytes(b'{"n": 3}\n{"n": 4}\n{"n": 5}\n')
        (tmp_path / "other").rename(path)
    found, anew = records.read()
    assert anew and found[0] == {"n": 3}


def test_a_line_without_end_does_not_stop_the_reader(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"x" * 1000 + b'\n{"n": 1}\n')
    records, got = Records(tmp_path, path), []
    for _ in range(20):
        got += records.read(100)[0]
    assert got == [{"n": 1}]


def test_the_newest_record_comes_from_the_end_of_the_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"n": 1}\n' * 1000 + b'{"n": 2}\nbroken\n{"n": 3')
    assert last_record(tmp_path, path, block=64) == {"n": 2}
    assert last_record(tmp_path, tmp_path / "none") is None


def test_only_regular_files_inside_are_opened(tmp_path):
    runs = tmp_path / "runs"
    (runs / "a").mkdir(parents=True)
    (tmp_path / "secret").write_text("secret")
    (runs / "a" / "file").write_text("fine")
    (runs / "a" / "inside").symlink_to(runs / "a" / "file")
    (runs / "a" / "outside").symlink_to(tmp_path / "secret")
    (runs / "a" / "above").symlink_to(tmp_path)
    os.mkfifo(runs / "a" / "pipe")
    for name in ("file", "inside"):
        assert read_bytes(runs / "a" / name, 10, runs) == b"fine"
    for name in ("outside", "above/secret", "pipe", ".", "../../secret", "none"):
        with pytest.raises(OSError):
            open_regular(runs / "a" / name, runs)
    with pytest.raises(OSError, match="larger"):
        read_bytes(runs / "a" / "file", 3, runs)


@given(values=st.lists(st.floats(-1e6, 1e6), max_size=200), most=st.sampled_from([2, 4, 10]))
def test_a_curve_is_bounded_and_its_points_are_means(values, most):
    curve = Curve(most)
    for x, y in enumerate(values):
        curve.add(float(x), y)
    points = list(curve.points())
    assert len(points) <= most
    each = 1
    while len(values) // each >= most:
        each *= 2
    groups = [values[at : at + each] for at in range(0, len(values), each)]
    xs = [min(each * (n + 1), len(values)) - 1 for n in range(len(groups))]
    assert [x for x, _ in points] == xs
    means = [math.fsum(group) / len(group) for group in groups]
    assert [y for _, y in points] == pytest.approx(means, abs=1e-6)


def test_a_phase_that_goes_back_replaces_its_curve():
    curve = Curve(8)
    for x in range(6):
        curve.add(x, 1.0)
    curve.add(2, 5.0)
    assert list(curve.points()) == [(0, 1.0), (1, 1.0), (2, 5.0)]


def test_values_that_are_not_finite_are_marked_and_leave_the_curve_whole():
    curve = Curve()
    for x, y in enumerate([1.0, math.nan, math.inf, 1e308, 2.0]):
        curve.add(x, y)
    assert list(curve.points()) == [(0, 1.0), (4, 2.0)]
    assert curve.lost == [1, 2, 3]


def spans(*times):
    return [{"chain": f"c{n}", "start": start, "end": end} for n, (start, end) in enumerate(times)]


def test_a_timeline_draws_long_pauses_short():
    found = layout(spans((0, 100), (100, 200), (100_000, 100_200)))
    first, second, third = (row["spans"][0] for row in found["rows"])
    assert (first["from"], third["to"]) == (0, 1)
    assert first["to"] == second["from"] == pytest.approx(100 / 412)
    (pause,) = found["pauses"]
    assert pause["seconds"] == 99_800
    assert pause["to"] - pause["from"] == pytest.approx(12 / 412)
    assert (found["start"], found["end"]) == (0, 100_200)


@given(
    st.lists(
        st.tuples(st.floats(0, 1e10), st.floats(0, 1e5)).map(lambda t: (t[0], t[0] + t[1])),
        max_size=20,
    )
)
def test_a_timeline_keeps_the_order_of_all_times(times):
    found = layout(spans(*times))
    placed = [(span[a], span[b]) for row in found["rows"] for span in row["spans"]
              for a, b in (("start", "from"), ("end", "to"))]  # fmt: skip
    assert all(-1e-9 <= place <= 1 + 1e-9 for _, place in placed)
    ordered = [place for _, place in sorted(placed)]
    assert all(b >= a - 1e-6 for a, b in itertools.pairwise(ordered))
