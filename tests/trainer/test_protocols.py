"""ROC, identification, open-set search, templates and forgetting: against other people's code and
against brute force; ties, empty kinds and NaN."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from sklearn.metrics import roc_curve

from trainer.evaluation import blocks
from trainer.evaluation.identification import identify
from trainer.evaluation.incremental import (
    average_accuracy,
    average_forgetting,
    average_over_tasks,
    confused,
    forgetting_rate,
    so_far,
    task_accuracy,
    task_confusion,
)
from trainer.evaluation.open_set import open_set
from trainer.evaluation.retrieval import nearest, retrieve
from trainer.evaluation.roc import impostors_between, roc, roc_from_counts
from trainer.evaluation.templates import pair_scores, template_vectors
from trainer.evaluation.verification import grid_accuracy

scored = st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=2, max_size=60).filter(
    lambda pairs: len({same for _, same in pairs}) == 2
)


def unit(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=shape)).float())


@given(scored, st.floats(0, 1))
@example([(0, False), (0, True)], 0.9999999999999999)
def test_tar_at_far_is_the_best_point_of_scikit_learns_roc(pairs, rate):
    score = np.array([s for s, _ in pairs], dtype=float)
    same = np.array([s for _, s in pairs])
    false, true, _ = roc_curve(same, score, drop_intermediate=False)
    rates = [rate, *false]  # each of its points, where rounding would show
    expected = [true[false <= r * (1 + 1e-12)].max() for r in rates]
    np.testing.assert_allclose(roc(score, same).at(rates), expected)


def test_the_roc_does_not_depend_on_how_impostors_come():
    rng = np.random.default_rng(0)
    score, same = rng.integers(0, 50, 3000) / 50, rng.random(3000) < 0.1
    genuine, impostor = np.sort(score[same]), score[~same]
    parts = np.split(rng.permutation(impostor), [5, 5, 700, 2000])
    counts = np.sum([impostors_between(part, genuine) for part in parts], axis=0)
    whole, merged = roc(score, same), roc_from_counts(genuine, counts)
    assert np.array_equal(whole.false, merged.false)


def test_rates_that_no_impostor_resolves_are_not_reported():
    rng = np.random.default_rng(0)
    found = roc(rng.random(1100), np.arange(1100) < 100)
    assert list(found.measured()) == ["0.001", "0.01", "0.1"]
    curve = found.curve()
    assert len(curve) <= 100
    assert curve[0][0] == pytest.approx(1e-3)
    assert curve[-1] == (1.0, 1.0)
    assert all(a <= b for (_, a), (_, b) in pairwise(curve))


@pytest.mark.parametrize("same", [[True, True], [False, False], []])
def test_a_roc_needs_genuine_pairs_and_impostors(same):
    with pytest.raises(ValueError, match="needs both kinds"):
        roc(np.arange(len(same), dtype=float), np.array(same, dtype=bool))


def test_scores_that_are_nan_are_refused():
    with pytest.raises(ValueError, match="1 genuine scores are NaN"):
        roc(np.array([np.nan, 1.0]), np.array([True, False]))


def test_grid_accuracy_is_brute_force_over_the_grid():
    rng = np.random.default_rng(1)
    folds, same = np.repeat(np.arange(10), 30), rng.random(300) < 0.5
    distance = rng.integers(0, 400, 300) / 100 - 0.7 * same
    accuracies = []
    for fold in range(10):
        rest, held = folds != fold, folds == fold
        right = [
            np.mean((distance[rest] < t) == same[rest]) for t in [k * 0.01 for k in range(400)]
        ]
        threshold = right.index(max(right)) * 0.01
        accuracies.append(np.mean((distance[held] < threshold) == same[held]))
    assert grid_accuracy(distance, same, folds) == pytest.approx(np.mean(accuracies))
    assert grid_accuracy(np.where(same, 0.5, 1.5), same, folds) == 1.0


@pytest.mark.parametrize("tied", [False, True])
def test_identification_equals_brute_force(tied, monkeypatch):
    monkeypatch.setattr(blocks, "TILE", 16)
    rng = np.random.default_rng(3)
    draw = (
        (lambda n: torch.from_numpy(rng.integers(-1, 2, (n, 2))).float())
        if tied
        else (lambda n: unit(rng, n, 3))
    )
    probe, distractors, identity = draw(40), draw(75), rng.integers(0, 12, 40)
    identity[0] = 99  # the only image of its identity
    ranks = []
    for a in range(40):
        for b in range(40):
            if a != b and identity[a] == identity[b]:
                mate = (probe[a] - probe[b]).square().sum()
                apart = (probe[a] - distractors).square().sum(dim=1)
                ranks.append(1 + int((apart <= mate + (0 if tied else 1e-9)).sum()))
    found = identify(probe, identity, distractors, depth=5)
    assert found.trials == len(ranks)
    assert found.skipped == sum((identity == i).sum() == 1 for i in identity)
    np.testing.assert_allclose(found.cmc, [np.mean(np.array(ranks) <= k) for k in range(1, 6)])


def test_identification_without_mates_says_so():
    with pytest.raises(ValueError, match="no probe has a second image"):
        identify(torch.eye(3), np.arange(3), torch.eye(3))


def test_collapsed_embeddings_identify_and_verify_nobody():
    same = torch.ones(6, 4)
    assert identify(same, np.zeros(6, dtype=int), same).cmc[0] == 0
    everyone = np.arange(6) % 3
    found = open_set(same, np.append(everyone[:3], [7, 8, 9]), same, everyone)
    assert found.at([0.1, 1.0]).tolist() == [0, 0]


@pytest.mark.parametrize("seed", range(4))
def test_open_set_search_equals_its_definition(seed, monkeypatch):
    monkeypatch.setattr(blocks, "TILE", 8)
    rng = np.random.default_rng(seed)
    gallery_subject = np.concatenate([np.arange(20), [3, 3]])  # one subject has three templates
    subject = rng.integers(0, 30, 40)
    if seed % 2:  # many ties
        probe, gallery = (torch.from_numpy(rng.integers(-2, 3, (n, 3))).float() for n in (40, 22))
    else:
        probe, gallery = unit(rng, 40, 4), unit(rng, 22, 4)
    scores = (2 * probe @ gallery.T - gallery.square().sum(dim=1)).numpy()
    mated = np.isin(subject, gallery_subject)
    found = open_set(probe, subject, gallery, gallery_subject)
    points = []
    for threshold in np.append(np.unique(scores), np.inf):
        alarms = (scores[~mated].max(axis=1) >= threshold).mean()
        hits = 0
        for row, who in zip(scores[mated], subject[mated], strict=True):
            mate = row[gallery_subject == who].max()
            other = row[gallery_subject != who].max()
            hits += mate >= threshold and mate > other + (0 if seed % 2 else 1e-9)
        points.append((alarms, hits / mated.sum()))
    for rate in (0.0, 0.05, 0.3, 1.0):
        best = max(hits for alarms, hits in points if alarms <= rate)
        assert found.at([rate])[0] == pytest.approx(best)


def test_open_set_search_needs_probes_with_and_without_a_mate():
    with pytest.raises(ValueError, match="needs both kinds"):
        open_set(torch.eye(3), np.arange(3), torch.eye(3), np.arange(3))


def test_a_template_is_the_sum_of_its_media_means():
    rng = np.random.default_rng(0)
    template = rng.permutation(np.repeat([7, 3, 900], [6, 1, 13]))
    medium = rng.integers(0, 3, 20)  # numbers that other templates use for other media
    vectors = unit(rng, 20, 5)
    names, found = template_vectors(vectors, template, medium)
    assert names.tolist() == [3, 7, 900]
    for name, vector in zip(names, found, strict=True):
        total = np.zeros(5)
        for one in np.unique(medium[template == name]):
            total += vectors[(template == name) & (medium == one)].numpy().mean(axis=0)
        np.testing.assert_allclose(vector, total / np.linalg.norm(total), atol=1e-6)
    scores = pair_scores(found, np.array([0, 1]), np.array([2, 1]))
    np.testing.assert_allclose(scores, [found[0] @ found[2], 1.0], atol=1e-6)


def test_a_template_that_cancels_out_is_named():
    with pytest.raises(ValueError, match="template 5 has a vector of length 0"):
        template_vectors(torch.tensor([[1.0], [-1.0]]), np.array([5, 5]), np.array([0, 1]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["query", "gallery"])
def test_embeddings_that_are_nan_are_refused(bad, where):
    query, gallery = torch.ones(3, 2), torch.ones(5, 2)
    (query if where == "query" else gallery)[2, 1] = bad
    ids = np.zeros(3, dtype=int), np.zeros(5, dtype=int)
    with pytest.raises(ValueError, match=f"1 of . {where} embeddings are NaN or infinite"):
        retrieve(query, gallery, *ids, *ids)
    with pytest.raises(ValueError, match=f"{where} embeddings are NaN"):
        nearest(query, gallery, 1)


def test_duplicates_keep_the_gallerys_order_across_tiles():
    rng = np.random.default_rng(0)
    gallery = unit(rng, 2 * blocks.TILE + 77, 8)
    copies = [2 * blocks.TILE + 76, 5, blocks.TILE + 900, blocks.TILE - 1]
    gallery[copies] = gallery[5].clone()
    query = gallery[5:6].clone()
    assert nearest(query, gallery, 4).tolist() == [sorted(copies)]
    identity = np.full(len(gallery), -1)
    for place, row in enumerate(sorted(copies), start=1):
        only = identity.copy()
        only[row] = 1
        found = retrieve(query, gallery, np.array([1]), only, np.array([0]), np.ones(len(only)))
        assert found.mean_average_precision == pytest.approx(1 / place)


def test_results_do_not_depend_on_how_the_queries_are_cut(monkeypatch):
    rng = np.random.default_rng(0)
    query, gallery = unit(rng, 90, 16), unit(rng, 500, 16)
    ids = [rng.integers(0, 9, n) for n in (90, 500)] + [rng.integers(0, 3, n) for n in (90, 500)]

    def everything():
        found = retrieve(query, gallery, *ids)
        mates = identify(query, ids[0], gallery)
        probes = open_set(query, ids[0] + 5, gallery, ids[1])
        return [found.cmc, mates.cmc, probes.at(np.linspace(0, 1, 9))], found

    whole, first = everything()
    monkeypatch.setattr(blocks, "_SCORES", 500 * 16)
    assert len(blocks.query_blocks(90, 500)) == 6
    cut, second = everything()
    for a, b in zip(whole, cut, strict=True):
        np.testing.assert_array_equal(a, b)
    assert first.mean_average_precision == second.mean_average_precision
    assert first.mean_inverse_penalty == second.mean_inverse_penalty


@pytest.mark.parametrize("gallery", [1, 1000, 82_161, 1_000_000, 4_000_000])
def test_a_block_of_scores_fits_its_memory(gallery):
    assert blocks.block_size(gallery) * gallery * 4 <= 256 * 2**20


ACCURACY = np.array([[0.9, np.nan, np.nan], [0.7, 0.8, np.nan], [0.75, 0.5, 0.6]])


def test_forgetting_follows_both_papers():
    assert average_forgetting(ACCURACY) == pytest.approx([0, 0.2, (0.15 + 0.3) / 2])
    assert forgetting_rate(ACCURACY) == pytest.approx(0.15)
    improved = np.array([[0.5, np.nan], [0.6, 0.9]])
    assert average_forgetting(improved).tolist() == [0, 0]
    assert forgetting_rate(improved) == pytest.approx(-0.1)


def test_averages_weigh_classes_or_tasks():
    assert average_over_tasks(ACCURACY) == pytest.approx([0.9, 0.75, 1.85 / 3])
    assert average_accuracy(ACCURACY, np.array([2, 1, 1])) == pytest.approx(
        [0.9, 2.2 / 3, (1.5 + 0.5 + 0.6) / 4]
    )


def test_task_accuracy_counts_each_task_by_itself():
    label = np.array([0, 0, 1, 2, 2, 3, 4])
    predicted = np.array([0, 1, 1, 2, 0, 3, 0])
    assert task_accuracy(predicted, label, (2, 4, 5)).tolist() == [2 / 3, 2 / 3, 0]
    with pytest.raises(ValueError, match="task 1 has no test image"):
        task_accuracy(label[:3], label[:3], (2, 4))
    with pytest.raises(ValueError, match=r"labels must lie in 0 \.\.\. 3"):
        task_accuracy(label, label, (2, 4))


class Imagined:
    """A gallery of 200,000 vectors that is never in memory: it would take 102 MB."""

    def __init__(self) -> None:
        self.most = 0

    def __len__(self) -> int:
        return 200_000

    def __getitem__(self, rows: slice) -> torch.Tensor:
        start, stop, _ = rows.indices(len(self))
        self.most = max(self.most, stop - start)
        return ((torch.arange(start, stop)[:, None] * torch.arange(1, 129)) % 97).float() + 1


def grown(work) -> float:
    """MB by which this process's memory peaks above what it has now, while it does `work`."""

    def held(field: str) -> float:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.split(f"{field}:")[1].split()[0]) / 1000

    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets the peak
    before = held("VmRSS")
    work()
    return held("VmHWM") - before


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_many_distractors_take_the_memory_of_a_tile():
    probe, gallery, found = torch.zeros(20, 128), Imagined(), []
    used = grown(lambda: found.append(identify(probe, np.arange(20) % 10, gallery)))
    assert found[0].cmc.tolist() == [1] * 10
    assert gallery.most <= blocks.TILE
    assert used < 40


@pytest.mark.usefixtures("one_thread")
def test_a_large_gallery_is_searched_in_the_memory_of_its_scores():
    gallery, found = Imagined(), []
    identity, camera = np.arange(len(gallery)) % 1000, np.zeros(len(gallery), dtype=int)
    query, asked = torch.zeros(16, 128), np.arange(16)

    def work():
        found.append(retrieve(query, gallery, asked, identity, camera[:16] + 1, camera))

    used = grown(work)
    assert gallery.most <= blocks.TILE
    assert used < 13 + 40  # the scores; labels in order, a row of scores sorted, a tile
    assert found[0].skipped == 0


ENDS = st.lists(st.integers(1, 4), min_size=1, max_size=5)


@given(sizes=ENDS, seed=st.integers(0, 10**6))
def test_confusion_counts_image_by_image(sizes, seed):
    ends = tuple(np.cumsum(sizes).tolist())
    draw = np.random.default_rng(seed)
    label = np.concatenate([np.arange(ends[-1]), draw.integers(0, ends[-1], 30)])
    predicted = draw.integers(0, ends[-1], len(label))
    task_of = [next(t for t, end in enumerate(ends) if c < end) for c in range(ends[-1])]
    counts = [[0] * len(ends) for _ in ends]
    for said, true in zip(predicted.tolist(), label.tolist(), strict=True):
        counts[task_of[true]][task_of[said]] += 1
    found = task_confusion(predicted, label, ends)
    assert found.tolist() == counts
    figures = confused(found)
    for row, shares in zip(counts, figures["confusion"], strict=True):
        assert shares == pytest.approx([n / sum(row) for n in row])
    if len(ends) == 1:
        assert figures.keys() == {"confusion"} and figures["confusion"] == [[1.0]]
        return
    old = [(s, t) for s, t in zip(predicted.tolist(), label.tolist(), strict=True)]
    newest = len(ends) - 1
    of_old = [task_of[s] == newest for s, t in old if task_of[t] < newest]
    of_new = [task_of[s] < newest for s, t in old if task_of[t] == newest]
    assert figures["old_as_new"] == pytest.approx(sum(of_old) / len(of_old))
    assert figures["new_as_old"] == pytest.approx(sum(of_new) / len(of_new))


def test_confusion_is_not_turned_nor_weighed_by_steps():
    """As if an old step of one image counted as much as one of three, or rows were columns."""
    label, predicted = np.array([0, 1, 1, 1, 2]), np.array([2, 1, 1, 0, 2])
    figures = confused(task_confusion(predicted, label, (1, 2, 3)))
    assert figures["confusion"] == [[0, 0, 1], [1 / 3, 2 / 3, 0], [0, 0, 1]]
    assert figures["old_as_new"] == 1 / 4 and figures["new_as_old"] == 0
    with pytest.raises(ZeroDivisionError, match="task 1 has no test image"):
        confused(np.array([[1, 0], [0, 0]]))


def test_the_figures_so_far_are_those_of_the_whole_matrix():
    rows = [[0.9], [0.7, 0.8], [0.75, 0.5, 0.6]]
    assert so_far(rows[:1], (2, 3, 4)).keys() == {
        "tasks", "class_accuracy", "average_accuracy", "task_accuracy",
    }  # fmt: skip
    found = so_far(rows, (2, 3, 4))
    assert found["task_accuracy"] == pytest.approx((0.75 + 0.5 + 0.6) / 3)
    assert found["first_drop"] == pytest.approx(0.9 - 0.75)
    assert found["forgetting"] == pytest.approx((0.15 + 0.3) / 2)
    assert found["average_accuracy"] == pytest.approx((0.9 + 2.2 / 3 + 2.6 / 4) / 3)
