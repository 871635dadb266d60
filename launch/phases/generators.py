"""Where the generator of features lies that a learning step begins with."""

from pathlib import Path

from launch.phases.kind import Phase, Step
from launch.runs.continuing import carried_generator
from trainer.methods.replay import Generator


def wanted_generator(at: Step) -> Generator | None:
    """What the steps behind `at` want of it; of the whole recipe: step 0 has no such Term itself,
    the one after it has."""
    return at.run.config.methods[at.chain.method].recipe().want(Generator)


def generators_before(at: Step) -> tuple[Phase, ...]:
    """The phase that made the generator which step `at` begins with, if there is one."""
    if not at.number:
        return ()
    return tuple(p for p in at.at(at.number - 1).phases if isinstance(p.want, Generator))


def generator_before(at: Step) -> Path | None:
    """Its folder; of a run that continues another, what that one's last step left. None where the
    run begins. Raises InputError."""
    if at.number:
        (before,) = generators_before(at)
        return before.output.path
    if at.run.config.continues is None:
        return None
    return carried_generator(at.run.config, at.chain.name)


def learns_images(at: Step) -> bool:
    """Whether step `at` has images of its own: of step 0 of a run that continues another there is
    no image here."""
    return bool(at.number) or at.run.config.continues is None
