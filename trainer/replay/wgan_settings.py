"""Settings of the conditional WGAN that replays features."""

from typing import Annotated, Literal

from pydantic import Field

from data_shards.settings import UNDECIDING, Settings
from trainer.replay.wgan import WganShape


class WganSettings(Settings):
    """A conditional WGAN with replay alignment, trained on the features of each step's images by
    the step's finished model (generative feature replay, Sec. 4.1). Defaults are its authors' for
    CIFAR: the paper's, or their released code's where the paper has none."""

    class_input: Literal["one-hot", "mean"] = "one-hot"
    """What the networks know of a class. one-hot: a vector with a 1 in its place, as the paper's:
    for classes by the hundred, as the networks grow by 2 x `width` weights with each. mean: the
    mean of its features, through a linear layer: for identities by the ten thousand, each of which
    adds its mean and no weight."""
    noise: int = Field(default=200, ge=1)
    """Length of z, the normal numbers that a feature is made of."""
    width: int = Field(default=512, ge=1)
    """Units of each of the two hidden layers, in both networks."""
    epochs: int = Field(default=501, ge=1)
    """Passes of the critic over the step's features. The authors take 201 for ImageNet."""
    batch: int = Field(default=128, ge=1)
    """Features in the global batch, over all workers."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """Of Adam, for both networks, when a step begins."""
    decay_every: int | None = Field(default=200, ge=1)
    """Epochs after which the learning rate is multiplied by `decay`, again and again; none: it
    stays."""
    decay: float = Field(default=0.3, gt=0, le=1)
    """See `decay_every`."""
    betas: tuple[float, float] = (0.5, 0.999)
    """Of Adam."""
    critic_updates: int = Field(default=5, ge=1)
    """Updates of the critic for each of the generator."""
    penalty: float = Field(default=10.0, ge=0)
    """Weight of the gradient penalty."""
    alignment: float | None = Field(default=None, ge=0)
    """Weight of the replay alignment, which sums over all old classes (Eq. 3; the paper names no
    weight). None: 0.128 / m in a step with m classes, as the released code has it; with 1 instead,
    new classes are learned several times more slowly."""
    least_variance: float = Field(default=0.05, ge=0, lt=1)
    """Share of the real features' variance. In the second half of training, generated ones that
    have less, within classes or over all, count as collapsed; those with more than its inverse as
    scattered. 0: no variance does."""
    watch_every: int = Field(default=500, ge=1)
    """Updates of the critic between two looks at the weights and the generated variance."""
    checkpoint_every: Annotated[int, UNDECIDING] = Field(default=1000, ge=1)
    """Updates of the critic between checkpoints."""

    def shape(self, dimension: int, relu: bool) -> WganShape:
        """The networks for features of length `dimension`, behind a ReLU or not."""
        return WganShape(
            dimension=dimension,
            noise=self.noise,
            width=self.width,
            class_input=self.class_input,
            relu=relu,
        )

    def iterations(self, features: int) -> int:
        """Updates of the critic on so many features."""
        return -(-self.epochs * features // self.batch)

    def rate(self, iteration: int, features: int) -> float:
        """The learning rate of an iteration, from 0."""
        drops = 0
        if self.decay_every is not None:
            drops = iteration * self.batch // (self.decay_every * features)
        return self.learning_rate * self.decay**drops

    def alignment_weight(self, new: int) -> float:
        """Of Eq. 3 in a step with so many `new` classes.

        The released code sums squared distances over a batch of 128, times 0.001 C_old / m; a sum
        over old classes of means is C_old / 128 of that sum.
        """
        return 128 * 1e-3 / new if self.alignment is None else self.alignment
