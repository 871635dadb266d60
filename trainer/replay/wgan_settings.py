"""Settings of the conditional WGAN that replays features."""

from typing import Annotated, Literal

from pydantic import Field

from data_shards.settings import UNDECIDING, Settings
from trainer.replay.conv import ConvShape
from trainer.replay.wgan import Ends, NetworkShape, WganShape


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

    def shape_for(self, features: tuple[int, ...], ends: Ends) -> NetworkShape:
        """The networks for what has the shape `features`; the generator ends in `ends`."""
        (dimension,) = features
        return self.shape(dimension, ends == "relu")

    def iterations(self, features: int) -> int:
        """Updates of the critic on so many features."""
        return -(-self.epochs * features // self.batch)

    def rate(self, iteration: int, features: int) -> float:
        """The learning rate of an iteration, from 0."""
        drops = 0
        if self.decay_every is not None:
            drops = iteration * self.batch // (self.decay_every * features)
        return self.learning_rate * self.decay**drops

    def alignment_weight(self, new: int, old: int) -> float:
        """Of Eq. 3 in a step with so many `new` and `old` classes.

        The released code sums squared distances over a batch of 128, times 0.001 C_old / m; a sum
        over old classes of means is C_old / 128 of that sum.
        """
        return 128 * 1e-3 / new if self.alignment is None else self.alignment


class ConvWganSettings(WganSettings):
    """A conditional WGAN of images, or of what a block of the network makes of them: convolutions
    with a projection of the class. Defaults are those of MeRGAN (Wu et al. 2018), in its released
    code's setting for photographs of 32 pixels."""

    class_input: Literal["one-hot"] = "one-hot"
    """What the networks know of a class: a vector with a 1 in its place. They grow by 16 x `width`
    weights with each."""
    noise: int = Field(default=128, ge=1)
    """Length of z, the normal numbers that an image is made of."""
    width: int = Field(default=32, ge=1)
    """Channels at full resolution; there are twice as many at each half of it, up to 8 times."""
    batch: int = Field(default=64, ge=1)
    """Images in the global batch, over all workers."""
    decay_every: int | None = Field(default=None, ge=1)
    """Epochs after which the learning rate is multiplied by `decay`, again and again; none: it
    stays."""
    betas: tuple[float, float] = (0.0, 0.9)
    """Of Adam."""
    alignment: float | None = Field(default=None, ge=0)
    """lambda_RA, weight of the replay alignment: a mean over old classes of squared distances,
    each a sum over pixels and channels. None: 0.32 / k with k old classes, which is the released
    code's 1e-2 times half of such a sum over 64 / k images of each, over k."""

    def shape_for(self, features: tuple[int, ...], ends: Ends) -> ConvShape:
        channels, height, width = features
        return ConvShape(
            channels=channels, size=(height, width), noise=self.noise, width=self.width, ends=ends
        )

    def alignment_weight(self, new: int, old: int) -> float:
        """Of the sum over so many `old` classes, of which lambda_RA weighs the mean."""
        if not old:
            return 0.0
        return (0.32 / old if self.alignment is None else self.alignment) / old
