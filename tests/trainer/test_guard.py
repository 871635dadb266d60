"""The guard decides from values alone; skipping and rewinding are the same on every rank."""

import json
import math
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_shards.settings import InputError
from tests.ranks import on_ranks
from tests.trainer.loops import Interrupted, train_step
from trainer import loop
from trainer.checkpoint import Folder
from trainer.gradients import Gradients, LossScale
from trainer.guard import Guard, GuardSettings, robust_score
from trainer.heads.collectives import Ranks
from trainer.heads.margin_loss import ClassifierSettings
from trainer.heads.margins import AdaFace
from trainer.heads.rows import ShardedRows
from trainer.methods.terms import Classify
from trainer.model import Model
from trainer.rewinds import Rewinds
from trainer.stepper import Stepper

ADAFACE = ClassifierSettings(margin=AdaFace())
SETTINGS = GuardSettings(spike=8.0, window=10, rewind_after=3, max_rewinds=1)
values = st.floats(0.1, 100)


@given(st.lists(values, min_size=1, max_size=30), values, st.floats(0.01, 100))
def test_the_score_has_no_unit(recent, value, factor):
    losses = torch.tensor(recent, dtype=torch.float64)
    plain, scaled = robust_score(losses, value), robust_score(losses * factor, value * factor)
    assert scaled == pytest.approx(plain, rel=1e-6, abs=1e-6)


@given(st.lists(values, min_size=9, max_size=30))
def test_a_third_of_outliers_does_not_hide_a_spike(recent):
    """Mean and standard deviation would: that is why it is the median."""
    calm = [5 + 0.01 * math.sin(i) for i in range(len(recent) * 2)]
    losses = torch.tensor(calm + [200.0] * (len(recent) // 2), dtype=torch.float64)
    assert robust_score(losses, 20.0) > 50


def fed(*losses):
    guard = Guard(SETTINGS)
    for loss in losses:
        guard.accept(loss)
    return guard


def test_a_loss_far_above_the_recent_ones_is_a_spike_and_one_below_is_not():
    guard = fed(5.0, 5.1, 4.9, 5.05, 5.0)
    assert guard.judge(9.0) == "spike"
    assert guard.judge(5.3) is None
    assert guard.judge(0.0) is None
    assert guard.judge(math.nan) == guard.judge(math.inf) == "loss"


def test_nothing_is_a_spike_before_half_of_the_window_is_there():
    assert fed(5.0, 5.1, 4.9, 5.0).judge(1000.0) is None


def test_old_losses_leave_the_window():
    guard = fed(*[5.0] * 10, *[50.0] * 10)
    assert guard.judge(51.0) is None


def test_only_skips_in_a_row_rewind():
    guard = fed(1.0)
    for _ in range(5):
        guard.reject()
        guard.reject()
        assert not guard.rewinds
        guard.accept(1.0)
    for _ in range(3):
        guard.reject()
    assert guard.rewinds


@given(st.lists(st.one_of(values, st.just(math.nan)), max_size=40))
def test_a_guard_put_back_decides_as_the_one_saved(losses):
    one = Guard(SETTINGS)
    for loss in losses:
        one.reject() if one.judge(loss) else one.accept(loss)
    two = Guard(SETTINGS)
    for name, tensor in one.tensors.items():
        two.tensors[name].copy_(tensor)
    assert (one.streak, one.judge(20.0)) == (two.streak, two.judge(20.0))


def test_the_loss_scale_halves_at_an_overflow_and_doubles_after_calm():
    scale = LossScale(interval=3)
    first = scale.value
    assert scale.overflow()
    assert scale.value == first / 2
    for _ in range(3):
        scale.good()
    assert scale.value == first
    while scale.overflow():
        pass
    assert scale.value == 1.0


def test_a_scaled_gradient_arrives_as_it_was():
    weight = torch.nn.Parameter(torch.ones(3))
    gradients = Gradients([weight], LossScale())
    seen = []
    x = weight * 2
    x.register_hook(lambda grad: seen.append(grad.clone()))
    gradients.enter(x).sum().backward()
    assert torch.equal(seen[0], torch.full((3,), 65536.0))
    assert torch.equal(weight.grad, torch.full((3,), 2.0))


# In training


@dataclass(frozen=True)
class Faulty:
    """Classification that breaks at some of its calls, on one rank."""

    kind: str
    calls: tuple[int, ...]
    rank: int = 0
    seen: tuple = ()
    weight: float = 1.0
    name: str = "classify"
    over: str = "new"
    wants: tuple = ()

    def at(self, old_rows):
        return replace(self, seen=[0])

    def __call__(self, forward):
        self.seen[0] += 1
        numerator, denominator = Classify()(forward)
        if self.seen[0] - 1 in self.calls and forward.rows["new"].ranks.rank == self.rank:
            if self.kind == "loss":
                numerator = numerator * math.nan
            elif self.kind == "spike":
                numerator = numerator * 1e6
            elif self.kind == "gradient":
                forward.embeddings.register_hook(lambda grad: grad * math.inf)
            elif self.kind == "weights":
                forward.rows["new"].weight.data[0, 0] = math.nan
        return numerator, denominator


def train(folder, out, *terms, events=None, **training):
    """Step 0 with other terms; returns the losses of every second iteration."""
    return train_step(folder, out, "finetune", 0, terms=terms, events=events, **training)


def model(out):
    return Folder.at(out / "0" / "model").tensors("embedder") | {
        "rows": Model.open(out / "0" / "model").sharded_rows(Ranks()).weight.detach(),
        **Model.open(out / "0" / "model").running(),
    }


def alike(a, b):
    return all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def faulty_rank(folder, out, term, training):
    """What was told, the records, and this rank's own embedder at the end."""
    events, records, kept, save = [], [], {}, loop.save_model

    def keep(**given):
        module = given["embedder"]
        kept.update({name: tensor.clone() for name, tensor in module.state_dict().items()})
        save(**given)

    loop.save_model = keep  # in this process alone, which ends with this function
    train(folder, out, term.at(0), events=events, records=records, **training)
    return [event["message"] for event in events], records, kept


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_fault_on_one_rank_is_skipped_by_all(small_folder, tmp_path, kind):
    """Parameters of the ranks differ, or they wait for each other for ever, if one goes on."""
    term = Faulty(kind, calls=(3, 7), rank=1)
    ranks = on_ranks(2, faulty_rank, small_folder, tmp_path, term, {}, folder=tmp_path / "store")
    (told, _, one), (told_too, _, other) = ranks
    assert told == told_too
    assert [message.split(":")[0] for message in told] == [
        "skip at iteration 4",
        "skip at iteration 8",
    ]
    assert alike(one, other)
    assert all(torch.isfinite(tensor).all() for tensor in model(tmp_path).values())


def test_a_skipped_update_changes_nothing(small_folder, tmp_path):
    """Weights, rows, the statistics of batch norm and margin: the fault in the last iteration."""
    train(small_folder, tmp_path / "a", Classify(), iterations=11, classifier=ADAFACE)
    out, fault = tmp_path / "b", Faulty("loss", (11,)).at(0)
    train(small_folder, out, fault, iterations=12, classifier=ADAFACE)
    assert alike(model(tmp_path / "a"), model(out))


def test_an_overflow_leaves_the_rows_alone_too(small_folder, tmp_path):
    training = {"precision": "fp16", "classifier": ADAFACE}
    train(small_folder, tmp_path / "a", Classify(), iterations=11, **training)
    fault = Faulty("gradient", (11,)).at(0)
    train(small_folder, tmp_path / "b", fault, iterations=12, **training)
    assert fault.seen == [12]
    assert alike(model(tmp_path / "a"), model(tmp_path / "b"))


def test_weights_that_break_are_rewound_and_their_samples_left_out(small_folder, tmp_path):
    """A flipped bit makes every later loss NaN: training ends as if it had gone on from the
    checkpoint at 5 without those samples."""
    broken, clean, guard = tmp_path / "a", tmp_path / "b", GuardSettings(rewind_after=1)
    events = []
    term = Faulty("weights", (6,)).at(0)
    train(small_folder, broken, term, events=events, guard=guard)
    assert [event["event"] for event in events] == ["skip", "rewind"]
    assert term.seen[0] > 12
    with pytest.raises(Interrupted):
        train(small_folder, clean, Classify(), stop_at=6, guard=guard)
    (clean / "0" / "rewinds.jsonl").write_text((broken / "0" / "rewinds.jsonl").read_text())
    (line,) = (broken / "0" / "rewinds.jsonl").read_text().splitlines()
    assert 0 < len(json.loads(line)["samples"]) <= 20
    train(small_folder, clean, Classify(), guard=guard)
    assert alike(model(broken), model(clean))


def test_weights_that_are_not_finite_are_never_saved(small_folder, tmp_path):
    """They break in the last iteration before a checkpoint, once its loss is computed."""

    @dataclass(frozen=True)
    class Late(Faulty):
        def __call__(self, forward):
            pair = Classify()(forward)
            self.seen[0] += 1
            if self.seen[0] == 10:
                forward.rows["new"].weight.data[0, 0] = math.inf
            return pair

    events = []
    train(small_folder, tmp_path, Late("", ()).at(0), events=events)
    assert [(event["event"], event["why"]) for event in events] == [
        ("skip", "gradient"),
        ("rewind", "weights"),
    ]
    assert all(torch.isfinite(tensor).all() for tensor in model(tmp_path).values())


def test_rewinds_end_with_one_clear_error(small_folder, tmp_path):
    guard = GuardSettings(rewind_after=2, max_rewinds=2)
    always = Faulty("loss", tuple(range(6, 1000)))
    with pytest.raises(InputError, match=r"max_rewinds = 2 rewinds: lower training\.learning_rate"):
        train(small_folder, tmp_path, always.at(0), guard=guard)
    assert not (tmp_path / "0" / "model").exists()
    assert len(Rewinds(tmp_path / "0" / "rewinds.jsonl", Ranks())) == 2


def test_spikes_are_skipped(small_folder, tmp_path):
    events = []
    guard = GuardSettings(window=8)
    term = Faulty("spike", (6, 9)).at(0)
    train(small_folder, tmp_path, term, events=events, guard=guard, milestones=())
    assert [(e["event"], e["why"], e["iteration"]) for e in events] == [
        ("skip", "spike", 7),
        ("skip", "spike", 10),
    ]


def test_an_overflow_on_one_rank_halves_the_scale_of_all(small_folder, tmp_path):
    """Beside those injected on rank 1, the first scales are really too large for float16."""
    term = Faulty("gradient", (6, 7), rank=1)
    given = (small_folder, tmp_path, term, {"precision": "fp16"})
    ranks = on_ranks(2, faulty_rank, *given, folder=tmp_path / "store")
    (_, records, one), (_, records_too, other) = ranks
    assert alike(one, other)
    scales = [(record["loss_scale"], record["skipped"]) for record in records]
    assert scales == [(record["loss_scale"], record["skipped"]) for record in records_too]
    assert all(scale == 65536 / 2**skipped for scale, skipped in scales)
    assert scales[3][1] - scales[2][1] == 2
    assert scales[-1] == scales[3]


def judged(alone):
    """What this rank makes of an iteration in which rank 1's rows overflow, and its new scale.

    `alone` has the known defect: the ranks do not hear of each other.
    """
    ranks = Ranks.default()
    rows = ShardedRows.new(0, 4, 2, 0, ranks)
    rows.weight.grad = torch.full_like(rows.weight, math.inf if ranks.rank else 1.0)
    state = SimpleNamespace(gradients=Gradients([], LossScale()), blocks={"current": rows})
    stepper = SimpleNamespace(_state=state, _ranks=Ranks() if alone else ranks)
    return Stepper._judge_gradients(stepper), state.gradients.scale.value


def test_ranks_that_judge_overflow_alone_would_be_seen(tmp_path):
    (one, scale), (other, scale_too) = on_ranks(2, judged, False, folder=tmp_path / "together")
    assert (one, scale) == (other, scale_too) == ("overflow", 65536 / 2)
    (one, scale), (other, scale_too) = on_ranks(2, judged, True, folder=tmp_path / "alone")
    assert one != other and scale != scale_too


def test_the_loss_scale_survives_a_restart(small_folder, tmp_path):
    records = []
    with pytest.raises(Interrupted):
        train(small_folder, tmp_path, Classify(), records=records, stop_at=6, precision="fp16")
    train(small_folder, tmp_path, Classify(), records=records, precision="fp16")
    before, after = (record for record in records if record["iteration"] == 6)
    assert before["loss_scale"] < 65536
    assert (after["loss_scale"], after["skipped"]) == (before["loss_scale"], 0)
