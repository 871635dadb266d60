"""What the dry run says is what happens: bytes held, bytes saved, bytes sent, work done."""

import json
from collections import Counter
from itertools import accumulate
from operator import itemgetter
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile

from data_shards.splits.benchmark import build_benchmark
from data_shards.splits.benchmark_settings import BenchmarkSettings
from data_shards.storage.dataset import ShardDataset
from tests.ranks import on_ranks
from tests.trainer.loops import ALL, Interrupted, train_step
from trainer.backbones import EmbedderSettings, build_embedder
from trainer.footprint import (
    embedder_footprint,
    head_footprint,
    images_by_rank,
    online_teacher_operations,
    saved_bytes,
)
from trainer.heads.collectives import Ranks
from trainer.heads.cross_entropy import Update
from trainer.heads.margin_loss import ClassifierSettings, MarginLoss
from trainer.heads.row_optimizers import RowOptimizer
from trainer.heads.rows import ShardedRows
from trainer.methods.forward import Forward, Teacher
from trainer.methods.wants import Answers
from trainer.optimizers import TrainingSettings

# as tests/trainer/loops.py trains
EMBEDDER, SIZE = EmbedderSettings(width=4, dimension=8), (16, 16)
TRAINING = TrainingSettings(batch=20)


@pytest.fixture(scope="module")
def rows(small_folder):
    settings = BenchmarkSettings(steps=2, test_identities=24, pairs=40, seen_identities=6)
    return build_benchmark(ShardDataset.open(small_folder), settings).row_ends


def head(method, rows, step, world, training=TRAINING):
    old = rows[step - 1] if step else 0
    recipe = ALL[method].recipe().at(step, old)
    sizes = old, rows[step], EMBEDDER.dimension
    return head_footprint(recipe, *sizes, sizes[-1], ClassifierSettings(), training, True, world)


def allocated(work):
    """The bytes that PyTorch's CPU allocator gave during `work`: left at the end, and at most.

    What an operator takes and gives back before it returns is left out: which scratch memory a
    kernel wants is the processor's affair, and can be more than all of the rest.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as done:
        kept = work()
    found = []

    def collect(node, operators):
        if node.tag == _EventType.Allocation:
            memory = node.extra_fields
            found.append((node.start_time_ns, memory.ptr, memory.alloc_size, operators))
        elif node.name.startswith("aten::"):
            operators = operators | {node.id}
        for child in node.children:
            collect(child, operators)

    for root in done.profiler.kineto_results.experimental_event_tree():
        collect(root, frozenset())
    sizes, taken = [], {}
    for place, (_, address, size, operators) in enumerate(sorted(found, key=itemgetter(0))):
        sizes.append(size)
        if size > 0:
            taken[address] = place, operators
            continue
        begun, within = taken.pop(address, (0, frozenset()))
        if within & operators:
            sizes[begun] = sizes[place] = 0
    del kept
    return sum(sizes), max(accumulate(sizes, initial=0))


@pytest.mark.reliability(
    0, "planned memory is compared with what is allocated beyond the kernels' own scratch memory"
)
@pytest.mark.parametrize("architecture", ["small", "resnet32", "resnet18"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_embedders_memory_is_what_the_allocator_gives(architecture, precision):
    settings = EmbedderSettings(architecture=architecture, dimension=32)
    training = TrainingSettings(batch=16, precision=precision)
    planned = embedder_footprint(settings, (48, 32), training, 1)
    network = build_embedder(settings).train()
    images = torch.zeros((16, 48, 32, 3), dtype=torch.uint8).permute(0, 3, 1, 2)

    def forward():
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return network(images).float()

    forward()  # what PyTorch allocates once and keeps
    held, _ = allocated(forward)
    assert planned.activations == pytest.approx(held, rel=0.01)
    _, most = allocated(lambda: forward().sum().backward())
    assert planned.peak == pytest.approx(most, rel=0.01)
    held = [*network.parameters(), *network.buffers()]
    assert planned.parameters == sum(t.numel() * t.element_size() for t in held)
    assert planned.gradients == sum(p.numel() * 4 for p in network.parameters())


def test_a_batch_in_parts_holds_one_part_and_adds_up_gradients():
    settings, parts = EmbedderSettings(dimension=32), (5, 5, 6)
    planned = embedder_footprint(settings, SIZE, TrainingSettings(batch=16, accumulate=3), 1)
    whole = embedder_footprint(settings, SIZE, TrainingSettings(batch=16), 1)
    network = build_embedder(settings).train()
    images = torch.zeros((6, *SIZE, 3), dtype=torch.uint8).permute(0, 3, 1, 2)

    def update():
        for count in parts:
            network(images[:count]).sum().backward()

    network(images)
    assert planned.activations == pytest.approx(allocated(lambda: network(images))[0], rel=0.01)
    assert planned.peak == pytest.approx(allocated(update)[1], rel=0.01)
    assert planned.activations < 0.5 * whole.activations and planned.peak < whole.peak
    assert planned.gradients == whole.gradients
    work, undivided = (sum(o.flops for o in plan.operations) for plan in (planned, whole))
    assert work == undivided


@pytest.mark.parametrize(
    ("method", "classifier"),
    [
        *((method, {}) for method in ("finetune", "lfl", "lwf", "fkd")),
        ("finetune", {"margin": {"kind": "adaface"}, "memory": 2**18}),
        ("finetune", {"margin": {"kind": "cosface"}, "sampled": 0.2}),
    ],
)
def test_the_losses_memory_is_what_the_allocator_gives(method, classifier):
    old, last, dimension, batch = 700, 3700, 32, 48
    recipe = ALL[method].recipe().at(1, old)
    training = TrainingSettings(batch=batch)
    settings = ClassifierSettings(**classifier)
    planned = head_footprint(recipe, old, last, dimension, dimension, settings, training, False, 1)
    current = ShardedRows.new(old, last, dimension, 0, Ranks())
    previous = ShardedRows.new(0, old, dimension, 0, Ranks())
    frozen = ShardedRows.new(0, old, dimension, 1, Ranks()).requires_grad_(False)
    wanted = recipe.want(Answers) or Answers()
    k = wanted.top_k or 0
    old_trained = method in ("lwf", "fkd")
    blocks = [current, previous] if old_trained else [current]
    optimizers = [RowOptimizer(block, training) for block in blocks]
    head = MarginLoss(settings, 0, torch.device("cpu"))
    embeddings = torch.rand(batch, dimension, requires_grad=True)
    labels = torch.randint(old, last, (batch,))

    def iteration():
        teacher = Teacher(
            torch.rand(batch, dimension) if wanted.embeddings else None,
            torch.randint(old, (batch, k)) if k else None,
            torch.rand(batch, k) if k else None,
            frozen,
        )
        update = Update(optimizers[0], 0.1)
        forward = Forward(
            embeddings=embeddings,
            labels=labels,
            rows={"old": previous, "new": current},
            classifier=head,
            teacher=teacher,
            update=update,
        )
        parts = [(term.weight, *term(forward)) for term in recipe.terms]
        sum(weight * n / d for weight, n, d in parts).backward()
        for optimizer in optimizers:
            optimizer.step(0.1)

    assert planned.peak == pytest.approx(allocated(iteration)[1], rel=0.05, abs=16384)
    state = sum(t.numel() * t.element_size() for o in optimizers for t in o.state.values())
    ids = 8 * (last - old + old * old_trained)
    assert planned.optimizer == state + ids


def test_work_is_that_of_the_convolutions_and_products():
    network, sizes = build_embedder(EMBEDDER), []

    def note(module, given, out):
        weights = module.weight[0].numel()
        sizes.append(2 * out.numel() * weights)

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(note)
    network(torch.zeros((7, 3, *SIZE), dtype=torch.uint8))
    training = TrainingSettings(batch=20)  # 7 of 20 images go to the fullest of 3 ranks
    planned = embedder_footprint(EMBEDDER, SIZE, training, 3)
    # forward, gradient of the weights, gradient of the input; the images need none
    assert sum(o.flops for o in planned.operations) == 3 * sum(sizes) - sizes[0]
    forward = online_teacher_operations(EMBEDDER, SIZE, training, 3)
    assert sum(o.flops for o in forward) == sum(sizes)


def tensor_bytes(file: Path) -> int:
    """The bytes of a safetensors file's tensors, without its header."""
    with file.open("rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    return max((f["data_offsets"][1] for n, f in header.items() if n != "__metadata__"), default=0)


def stopped(small_folder, out, method):
    """Trains both steps, the second one only until after its first checkpoint."""
    train_step(small_folder, out, "finetune", 0)
    with pytest.raises(Interrupted):
        train_step(small_folder, out, method, 1, stop_at=6)


@pytest.mark.parametrize("method", ["fkd", "joint", "finetune"])
def test_a_checkpoint_and_a_model_take_the_planned_bytes(small_folder, rows, tmp_path, method):
    stopped(small_folder, tmp_path, method)
    (checkpoint,) = (tmp_path / "1" / "checkpoints").glob("[0-9]*")
    embedder = embedder_footprint(EMBEDDER, SIZE, TRAINING, 1)
    recipe = ALL[method].recipe().at(1, rows[0])
    _, saved = saved_bytes(recipe, *rows, EMBEDDER.dimension, TRAINING)
    written = sum(map(tensor_bytes, checkpoint.glob("*.safetensors")))
    assert written == saved + embedder.parameters + embedder.saved_optimizer
    saved, _ = saved_bytes(recipe.at(0, 0), 0, rows[0], EMBEDDER.dimension, TRAINING)
    files = {file.stem: tensor_bytes(file) for file in (tmp_path / "0" / "model").glob("*.safe*")}
    assert files.pop("names") < 32 * rows[0]  # which are not planned
    assert sum(files.values()) == saved + embedder.parameters


def counted_on_rank(small_folder, out, method, parts):
    """The collectives of twelve iterations."""
    calls: Counter = Counter()
    reduce, gather = dist.all_reduce, dist.all_gather

    def all_reduce(tensor, *args, **kwargs):
        calls["all-reduce", tensor.numel() * tensor.element_size()] += 1
        return reduce(tensor, *args, **kwargs)

    def all_gather(parts, tensor, *args, **kwargs):
        calls["all-gather", tensor.numel() * tensor.element_size()] += 1
        return gather(parts, tensor, *args, **kwargs)

    dist.all_reduce, dist.all_gather = all_reduce, all_gather
    train_step(small_folder, out, method, 1, iterations=12, accumulate=parts)
    return calls


@pytest.mark.parametrize("parts", [1, 2])
def test_what_is_sent_is_what_is_planned(small_folder, rows, tmp_path, parts):
    method, world, out = "fkd", 3, tmp_path / "run"
    training = TRAINING.model_copy(update={"accumulate": parts})
    train_step(small_folder, out, "finetune", 0, iterations=9)
    counted = on_ranks(
        world, counted_on_rank, small_folder, out, method, parts, folder=tmp_path / "store"
    )
    calls = embedder_footprint(EMBEDDER, SIZE, training, world).calls
    calls |= head(method, rows, 1, world, training).calls
    planned: Counter = Counter()
    for call in (call for made in calls.values() for call in made):
        planned[call.kind, call.bytes] += 12
    for found in counted:
        # single numbers, by which ranks agree on something, are not planned
        assert {call: n for call, n in found.items() if call[1] > 16} == planned


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_zero_shares_out_the_optimisers_state_and_gathers_the_weights(optimizer):
    """DeepSpeed 0.19 sends the same at stages 1 and 2: gradients whole, and shares of weights."""
    plans = [
        embedder_footprint(
            EMBEDDER, SIZE, TrainingSettings(batch=20, zero=zero, optimizer=optimizer), 4
        )
        for zero in (0, 1, 2)
    ]
    whole, shared, _ = plans
    assert shared.saved_optimizer == whole.saved_optimizer == whole.optimizer
    assert shared.optimizer == pytest.approx((whole.optimizer + whole.gradients) / 4, abs=2)
    assert "embedder weights" not in whole.calls
    (gather,) = shared.calls["embedder weights"]
    assert gather.bytes == pytest.approx(whole.gradients / 4, abs=1)
    assert plans[1] == plans[2]


def test_one_rank_sends_nothing(rows):
    assert not any(embedder_footprint(EMBEDDER, SIZE, TRAINING, 1).calls.values())
    assert not any(head("fkd", rows, 1, 1).calls.values())


def test_the_images_of_a_batch_are_all_taken():
    assert images_by_rank(20, 3) == [6, 7, 7]
