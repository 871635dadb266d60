"""One update after the other of a conditional WGAN, on every rank."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.counter_rng import stream_key
from data_shards.orders.draws import rounds
from data_shards.orders.order import UniformOrder, rank_slice
from trainer.heads.collectives import Ranks
from trainer.optimizers import set_learning_rate
from trainer.replay.wgan import ConditionalGenerator, Wgan
from trainer.replay.wgan_losses import (
    critic_loss,
    generator_loss,
    gradient_penalty,
    replay_alignment,
)
from trainer.replay.wgan_settings import WganSettings

Ids = NDArray[np.int64]
Files = dict[str, dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Features:
    """What a generator learns: real features, equal on every rank."""

    vectors: torch.Tensor
    """[n, d] float32; with `made`, images [n, 3, H, W] uint8."""
    classes: Ids
    """[n], their classifier rows."""
    made: Callable[[torch.Tensor], torch.Tensor] | None = None
    """What features are of images [b, 3, H, W], without autograd, where these are held in place
    of features because they are smaller: [b, channels, height, width]."""

    def at(self, samples: Ids) -> torch.Tensor:
        """The features of `samples` [b] < n."""
        held = self.vectors[torch.from_numpy(samples).to(self.vectors.device)]
        return held if self.made is None else self.made(held)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one of them."""
        return tuple(self.at(np.arange(1)).shape[1:])


@dataclass(frozen=True)
class Losses:
    """Of one iteration, equal on every rank: means over the global batch."""

    critic: float
    """Eq. 1, without the penalty."""
    penalty: float
    """Not weighted."""
    generator: float | None = None
    """Eq. 2; none where the generator was not updated."""
    alignment: float | None = None
    """Eq. 3, not weighted."""
    stopping: bool = False
    """Whether any rank was asked to stop."""

    @property
    def finite(self) -> bool:
        """Whether they all are."""
        parts = (self.critic, self.penalty, self.generator or 0.0, self.alignment or 0.0)
        return bool(np.isfinite(parts).all())


class WganUpdates:
    """Both networks with their optimisers.

    Which features, classes and noise an iteration has is a function of the seed and its number:
    every rank draws those of the whole batch and takes its slice. Gradients are sums over samples,
    added up over the ranks and divided by the batch, so that any number of ranks makes the same
    updates but for rounding, and the weights stay equal on all of them.
    """

    def __init__(
        self,
        settings: WganSettings,
        features: Features,
        networks: Wgan,
        before: ConditionalGenerator | None,
        *,
        seed: int,
        ranks: Ranks,
    ) -> None:
        """`networks` learn `features`, and their generator to do as that of the step `before` did
        on all classes that it knows. They are on one device with it and the features."""
        self._settings, self._features, self._ranks = settings, features, ranks
        self.networks, self._before, self._seed = networks, before, seed
        self._order = UniformOrder(np.arange(len(features.classes)), seed)
        self._adam = {
            name: torch.optim.Adam(
                network.parameters(), lr=settings.learning_rate, betas=settings.betas
            )
            for name, network in self._trained()
        }
        old = 0 if before is None else before.rows
        self._alignment = settings.alignment_weight(networks.rows - old, old)
        self.iteration = 0
        """Updates of the critic that were made."""

    def _trained(self) -> Iterator[tuple[str, torch.nn.Module]]:
        yield "generator", self.networks.generator
        yield "critic", self.networks.critic

    def step(self, stop: bool = False) -> Losses:
        """One update of the critic and, now and then, of the generator.

        Where a loss is not finite, the update is not made. A collective call; `stop`: this rank
        is asked to.
        """
        settings, number = self._settings, self.iteration
        size = settings.batch
        own = rank_slice(size, self._ranks.rank, self._ranks.world)
        positions = np.arange(number * size, (number + 1) * size)[own]
        samples = self._order.at(positions)
        device = self._features.vectors.device
        real = self._features.at(samples)
        classes = torch.from_numpy(self._features.classes[samples]).to(device)
        noise, share = self._drawn(
            "critic", (size, settings.noise), (size, 1), normal=(True, False)
        )
        generated = self.networks.generator.features(classes, noise[own])
        critic = self.networks.critic
        distance = critic_loss(critic, real, generated, classes)
        penalty = gradient_penalty(critic, real, generated, classes, share[own])
        found = self._update(
            "critic",
            (distance + settings.penalty * penalty) / size,
            (distance / size, penalty / size, real.new_tensor(float(stop))),
        )
        losses = Losses(found[0], found[1], stopping=found[2] > 0)
        if losses.finite and (number + 1) % settings.critic_updates == 0:
            adversarial, alignment = self._generator_step(classes, own)
            losses = replace(losses, generator=adversarial, alignment=alignment)
        self.iteration += 1
        return losses

    def _generator_step(self, classes: torch.Tensor, own: slice) -> tuple[float, float]:
        """On the batch's `classes` [b], and on as many old ones."""
        settings, size = self._settings, self._settings.batch
        generator = self.networks.generator
        noise, aligned = self._drawn(
            "generator", (size, settings.noise), (size, settings.noise), normal=(True, True)
        )
        made = generator(classes, noise[own])
        adversarial = generator_loss(self.networks.critic, made, classes) / size
        alignment = adversarial.new_zeros(())
        if self._before is not None:
            old = self._old_classes(own, self._before.rows).to(classes.device)
            theirs = self._before.features(old, aligned[own])
            apart = replay_alignment(generator(old, aligned[own]), theirs)
            alignment = self._before.rows * apart / size
        found = self._update(
            "generator", adversarial + self._alignment * alignment, (adversarial, alignment)
        )
        return found[0], found[1]

    def _old_classes(self, own: slice, known: int) -> torch.Tensor:
        """Of an iteration's draws of old classes, this rank's: every class equally often."""
        size, turn = self._settings.batch, self.iteration // self._settings.critic_updates
        positions = np.arange(turn * size, (turn + 1) * size, dtype=np.int64)[own]
        keys = np.full(len(positions), stream_key(self._seed, "old classes"), dtype=np.uint64)
        count = np.full(len(positions), known, dtype=np.int64)
        drawn = rounds(count, size, keys, positions) if len(positions) else positions
        return torch.from_numpy(drawn)

    def _drawn(
        self, use: str, *shapes: tuple[int, int], normal: tuple[bool, ...]
    ) -> list[torch.Tensor]:
        """Random numbers of this iteration for the whole batch: normal ones, or uniform in [0, 1).

        Torch's of the CPU: a GPU's generator would draw others.
        """
        key = int(stream_key(self._seed, use, self.iteration) >> 1)
        generator = torch.Generator().manual_seed(key)
        device = self._features.vectors.device
        return [
            (torch.randn if bell else torch.rand)(*shape, generator=generator).to(device)
            for shape, bell in zip(shapes, normal, strict=True)
        ]

    def _update(self, name: str, loss: torch.Tensor, told: Sequence[torch.Tensor]) -> list[float]:
        """One step of a network on the ranks' losses together, if `told`, summed over the ranks,
        is finite; returns that."""
        parameters = [*dict(self._trained())[name].parameters()]
        slopes = torch.autograd.grad(loss, parameters)
        # in one message, with what the ranks must agree on
        message = torch.cat([*(s.reshape(-1) for s in slopes), torch.stack([*told]).detach()])
        self._ranks.sum(message)
        values: list[float] = message[-len(told) :].tolist()
        if np.isfinite(values).all():
            ends = np.cumsum([p.numel() for p in parameters])
            for parameter, end in zip(parameters, ends.tolist(), strict=True):
                parameter.grad = message[end - parameter.numel() : end].view_as(parameter)
            rate = self._settings.rate(self.iteration, len(self._features.classes))
            set_learning_rate(self._adam[name], rate)
            self._adam[name].step()
            self._adam[name].zero_grad()
        return values

    def files(self) -> Files:
        """The whole state by file and tensor, not copied."""
        held: Files = {}
        for name, network in self._trained():
            held[name] = dict(network.state_dict())
            moments = held[f"{name}-adam"] = {}
            for parameter, tensor in network.named_parameters():
                state = self._adam[name].state[tensor]
                moments |= {f"{parameter}.{what}": state[what] for what in state}
        return {name: tensors for name, tensors in held.items() if tensors}

    def restore(self, files: Files, iteration: int) -> None:
        """Puts back what `files` gave when so many iterations were done.

        Raises ValueError, KeyError or RuntimeError for those of other networks.
        """
        for name, network in self._trained():
            network.load_state_dict(files[name])
            moments = files.get(f"{name}-adam", {})
            for parameter, tensor in network.named_parameters():
                state = {
                    what: moments[f"{parameter}.{what}"].clone()
                    for what in ("step", "exp_avg", "exp_avg_sq")
                    if f"{parameter}.{what}" in moments
                }
                # the step stays on the CPU, as Adam keeps it
                self._adam[name].state[tensor] = {
                    what: value if what == "step" else value.to(tensor.device)
                    for what, value in state.items()
                }
        self.iteration = iteration
