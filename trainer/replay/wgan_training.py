"""Training a conditional WGAN on a step's features: checkpoints, a second try, and the result."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_shards.counter_rng import stream_key
from data_shards.files import write_atomically
from data_shards.settings import InputError
from monitoring.metrics import Metrics
from trainer.activity import Activity
from trainer.checkpoint import Checkpoints, DamagedError, Fence, Folder, save_folder, unfenced
from trainer.class_means import class_means, class_sums
from trainer.divergence import Diverged
from trainer.heads.collectives import Ranks
from trainer.optimizers import TrainingSettings
from trainer.replay.source import CARD
from trainer.replay.wgan import Ends, Wgan
from trainer.replay.wgan_folder import Wgans
from trainer.replay.wgan_health import EXPLAINED, Divergence, Health
from trainer.replay.wgan_settings import WganSettings
from trainer.replay.wgan_updates import Features, Ids, Losses, WganUpdates

_TENSORS = ".safetensors"
_WATCHED, _AT_ONCE = 2048, 128
"""How many features are made to compare generated ones with, and how many at a time."""
_TRIES = 2
"""A divergence may be bad luck once."""
_CODES: tuple[Divergence, ...] = tuple(EXPLAINED)


@dataclass(frozen=True, kw_only=True)
class WganSpec:
    """Everything that decides the training of a step's generator."""

    how: Wgans
    ends: Ends
    """What features are behind."""
    features: Features
    """Of the step's own images."""
    rows: int
    """Classes learned after the step, those before included."""
    before: Wgan | None
    """Of the step before; none: there is no old class."""
    seed: int
    step: int
    training: TrainingSettings
    """How many checkpoints are kept."""
    output: Path
    """The folder that the networks go to."""
    checkpoints: str
    """Path or fsspec URL of its checkpoints, and no other training's."""
    name: str
    """Of the learning step, for people."""
    origin: str
    """Names the result: equal for trainings that make the same networks."""
    fence: Fence = unfenced

    @property
    def settings(self) -> WganSettings:
        """Of the networks and their training."""
        return self.how.settings

    @property
    def iterations(self) -> int:
        """Updates of the critic."""
        return self.settings.iterations(len(self.features.classes))

    def begun(self, seed: int) -> Wgan:
        """The networks that training begins with."""
        features, classes = self.features, self.features.classes
        old = 0 if self.before is None else self.before.rows
        if len(classes) == 0 or classes.min() < old or classes.max() >= self.rows:
            raise ValueError(f"a step that learns classes {old} to {self.rows - 1} has others")
        if self.before is not None and self.before.shape.features != features.shape:
            was, now = (
                " x ".join(map(str, s)) for s in (self.before.shape.features, features.shape)
            )
            raise InputError(
                f"features of earlier identities are of {was} numbers, and of {now} now: replay "
                "needs the same embedder and data.image_size in all steps"
            )
        means = None
        if self.settings.class_input == "mean":
            sums = class_sums(features.vectors.cpu().numpy(), classes)
            means = torch.from_numpy(class_means([sums], old, self.rows))
        if self.before is None:
            shape = self.settings.shape_for(features.shape, self.ends)
            return Wgan.new(shape, self.rows, means, seed=seed, step=self.step)
        return self.before.grown(self.rows, means, seed=seed, step=self.step)


def train_wgan(
    spec: WganSpec,
    ranks: Ranks,
    device: torch.device,
    metrics: Metrics,
    report: Callable[[dict[str, Any]], None],
    tell: Callable[[str], None],
    activity: Activity,
) -> bool:
    """Trains from the newest checkpoint to the finished networks, which appear whole.

    `report` hears a record now and then on every rank, `tell` lines for the user. Returns False
    when `activity` of any rank asked for a stop: a checkpoint is then saved. Raises Diverged
    when training did so twice.
    """
    activity.turn("preparing")
    ranks = replace(ranks, exchanging=activity.exchanging)
    if _trained_before(spec, ranks):
        return True
    tries = _Tries(spec, ranks)
    metrics.rewinds.inc(tries.count)
    settings = spec.training.model_copy(
        update={"checkpoint_every": spec.settings.checkpoint_every, "checkpoint_minutes": None}
    )
    log = _Log(spec, metrics, report)
    while True:
        with Checkpoints(
            location=spec.checkpoints,
            settings=settings,
            ranks=ranks,
            metrics=metrics,
            tell=tell,
            fence=spec.fence,
        ) as checkpoints:
            why = _try(spec, ranks, device, checkpoints, log, tries, activity)
        if not isinstance(why, tuple):
            return why
        tries.failed(*why)
        metrics.rewinds.inc()
        message = f"{spec.name}: {tries.words}; it is tried once more, with other random numbers"
        report({"event": "rewind", "iteration": why[0], "why": why[1], "message": message})


def _trained_before(spec: WganSpec, ranks: Ranks) -> bool:
    """Whether the very networks lie there: training ended, and then this process before it could
    say so. Rank 0 looks, for all of them."""
    found = False
    if ranks.rank == 0 and spec.output.exists():
        try:
            folder = Folder.at(spec.output)
            folder.verify()
            found = folder.card(CARD).get("origin") == spec.origin
        except DamagedError:  # it is made anew
            found = False
    return bool(ranks.broadcast_object(found))


def _try(
    spec: WganSpec,
    ranks: Ranks,
    device: torch.device,
    checkpoints: Checkpoints,
    log: "_Log",
    tries: "_Tries",
    activity: Activity,
) -> bool | tuple[int, Divergence]:
    """Trains from the newest checkpoint until something ends it: whether it is finished, or where
    and how it diverged."""
    settings, total = spec.settings, spec.iterations
    seed = int(stream_key(spec.seed, "wgan training", spec.step, tries.count) >> 1)
    networks = spec.begun(seed).to(device)
    features = replace(spec.features, vectors=spec.features.vectors.to(device))
    updates = WganUpdates(
        settings,
        features,
        networks,
        None if spec.before is None else spec.before.to(device).generator,
        seed=seed,
        ranks=ranks,
    )
    health = Health(*_watched(features), settings.least_variance, seed)
    if (newest := checkpoints.newest()) is not None:
        _restore(updates, newest, spec)
    log.begin(updates.iteration)
    while updates.iteration < total:
        activity.turn("forward")
        losses = updates.step(activity.stop.is_set())
        done = updates.iteration
        log.iteration(done, losses)
        due = checkpoints.due(done) or (losses.stopping and done < total)
        watched = done % settings.watch_every == 0 or done == total
        why: Divergence | None = None if losses.finite else "loss"
        if why is None and (due or watched):
            judge = watched and 2 * done >= total
            why = _agreed(health.look(updates.networks.generator, judge=judge), ranks)
        if why is not None:
            return done, why
        if due and done < total:
            activity.turn("saving a checkpoint")
            checkpoints.save(done, updates.files() if not ranks.rank else {}, _facts(spec))
            if losses.stopping:
                return False
    activity.turn("saving the model")
    files, card = spec.how.files(updates.networks, spec.origin)
    save_folder(spec.output, files if not ranks.rank else {}, card, ranks, spec.fence)
    checkpoints.clear()
    return True


def _watched(features: Features) -> tuple[torch.Tensor, Ids]:
    """The real features that generated ones are compared with, and their classes: all, or where
    they must be made first, some."""
    classes = features.classes
    if features.made is None:
        return features.vectors, classes
    # classes follow each other image by image: a stable order by class, evenly spaced
    order = np.argsort(classes, kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, min(_WATCHED, len(order))).astype(np.int64)]
    parts = np.array_split(chosen, -(-len(chosen) // _AT_ONCE))
    return torch.cat([features.at(part) for part in parts]), classes[chosen]


def _facts(spec: WganSpec) -> dict[str, Any]:
    return {"origin": spec.origin}


def _restore(updates: WganUpdates, newest: Folder, spec: WganSpec) -> None:
    """Raises DamagedError, and InputError for a checkpoint of another training."""
    card = newest.card("checkpoint")
    if card.get("origin") != spec.origin:
        raise InputError(f"{newest} is of another training: move it away and run again")
    with newest.intact("generator.safetensors"):
        files = [name for name in newest.hashes if name.endswith(_TENSORS)]
        held = {
            name.removesuffix(_TENSORS): newest.tensors(name.removesuffix(_TENSORS))
            for name in files
        }
        updates.restore(held, int(card["iteration"]))


def _agreed(why: Divergence | None, ranks: Ranks) -> Divergence | None:
    """What any rank found: memory errors may strike one alone."""
    code = 0 if why is None else 1 + _CODES.index(why)
    worst = int(ranks.max(torch.tensor(float(code))).item())
    return _CODES[worst - 1] if worst else None


class _Tries:
    """The divergences of this training so far: agreed by all ranks, written by rank 0."""

    def __init__(self, spec: WganSpec, ranks: Ranks) -> None:
        """Raises Diverged where there were too many already."""
        self._spec, self._ranks = spec, ranks
        self._path = spec.output.with_name(f"{spec.output.name}-divergences.json")
        found = None
        if ranks.rank == 0 and self._path.exists():
            found = json.loads(self._path.read_text(encoding="utf-8"))
        found = ranks.broadcast_object(found) or {}
        # of an earlier training, with other settings, if it has another origin
        self._records: list[Any] = found["tries"] if found.get("origin") == spec.origin else []
        self._check()

    @property
    def count(self) -> int:
        """How often it has diverged."""
        return len(self._records)

    @property
    def words(self) -> str:
        """The last one, for people."""
        iteration, why = self._records[-1]
        return f"the generator diverged at iteration {iteration}: {EXPLAINED[why]}"

    def failed(self, iteration: int, why: Divergence) -> None:
        """Keeps a divergence. Raises Diverged when it is the last one allowed."""
        self._records.append([iteration, why])
        if self._ranks.rank == 0:
            self._spec.fence()
            facts = {"origin": self._spec.origin, "tries": self._records}
            write_atomically(self._path, json.dumps(facts).encode())
        self._ranks.barrier()
        self._check()

    def _check(self) -> None:
        if self.count >= _TRIES:
            raise Diverged(
                f"{self.words}, and so it had with other random numbers. "
                "Nothing is replayed from it: lower the generator's learning_rate = "
                f"{self._spec.settings.learning_rate:g}, or raise its epochs or batch, in another "
                "--out"
            )


class _Log:
    """Times the training, keeps its metrics, and reports now and then."""

    def __init__(
        self, spec: WganSpec, metrics: Metrics, report: Callable[[dict[str, Any]], None]
    ) -> None:
        self._spec, self._metrics, self._report = spec, metrics, report
        self._generator: dict[str, float] = {}
        self.begin(0)

    def begin(self, iteration: int) -> None:
        """Training starts, or starts again."""
        self._last, self._since = iteration, time.monotonic()

    def iteration(self, done: int, losses: Losses) -> None:
        """Counts an iteration; reports the losses of the latest updates."""
        settings, total = self._spec.settings, self._spec.iterations
        self._metrics.iteration.set(done)
        self._metrics.iterations.inc()
        self._metrics.images.inc(settings.batch)
        if losses.generator is not None and losses.alignment is not None:
            told = {"generator": losses.generator, "alignment": losses.alignment}
            self._generator = told if self._spec.before else {"generator": losses.generator}
        if done % settings.watch_every and done != total:
            return
        now = time.monotonic()
        seconds, count = now - self._since, done - self._last
        self._since, self._last = now, done
        loss = losses.critic + settings.penalty * losses.penalty
        self._metrics.loss.set(loss)
        self._metrics.iteration_seconds.observe(seconds / count)
        self._report(
            {
                "iteration": done,
                "of": total,
                "iterations": count,
                "seconds": seconds,
                "images_per_second": settings.batch * count / max(seconds, 1e-9),
                "data_wait_share": 0.0,
                "loss": loss,
                # how far apart real and generated features are, as the critic sees them
                "distance": -losses.critic,
                "penalty": losses.penalty,
                **{name: float(np.float64(value)) for name, value in self._generator.items()},
            }
        )
