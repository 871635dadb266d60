"""What the updates of a conditional WGAN compute, found by a dry run."""

from functools import cache

import torch

from trainer.dry_run import DryRun, Operation
from trainer.replay.wgan import Wgan
from trainer.replay.wgan_losses import (
    critic_loss,
    generator_loss,
    gradient_penalty,
    replay_alignment,
)
from trainer.replay.wgan_settings import WganSettings


@cache
def turn_operations(
    settings: WganSettings, shape: tuple[int, ...], rows: int, old: int, count: int
) -> list[Operation]:
    """The work of a rank with `count` features of the batch, from one update of the generator to
    the next: that one, and `critic_updates` of the critic.

    Features have this `shape` and are of `rows` classes, of which `old` are aligned with the
    generator before.
    """
    with DryRun() as dry_run:
        means = torch.empty(rows, *shape) if settings.class_input == "mean" else None
        networks = Wgan.new(settings.shape_for(shape, "relu"), rows, means, seed=0, step=0)
        classes, noise = torch.empty(count, dtype=torch.int64), torch.empty(count, settings.noise)
        real, share = torch.empty(count, *shape), torch.empty(count, 1)
        critic, generator = networks.critic, networks.generator
        adams = [
            torch.optim.Adam(network.parameters(), betas=settings.betas)
            for network in (critic, generator)
        ]
        dry_run.mark()
        generated = generator.features(classes, noise)
        loss = critic_loss(critic, real, generated, classes)
        loss = loss + gradient_penalty(critic, real, generated, classes, share)
        _update(loss, adams[0])
        of_critic, _ = dry_run.operations, dry_run.mark()
        made = generator(classes, noise)
        loss = generator_loss(critic, made, classes)
        if old:
            theirs = generator.features(classes, noise)  # as the generator before, but for classes
            loss = loss + replay_alignment(generator(classes, noise), theirs)
        _update(loss, adams[1])
        return of_critic * settings.critic_updates + dry_run.operations


def _update(loss: torch.Tensor, adam: torch.optim.Optimizer) -> None:
    (group,) = adam.param_groups
    parameters = group["params"]
    for parameter, slope in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = slope
    adam.step()
