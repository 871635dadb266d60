"""Features in the plane by t-SNE."""

import numpy as np
from numpy.typing import NDArray

from data_shards.counter_rng import stream_key
from data_shards.settings import InputError

_PERPLEXITY = 30.0
"""That of van der Maaten and Hinton 2008; of few features a third of their number."""
_FEWEST = 5


class TSNE:
    """t-SNE (van der Maaten and Hinton 2008; Barnes-Hut) from principal components."""

    def __init__(self) -> None:
        """Raises InputError where scikit-learn is not installed."""
        try:
            from sklearn.manifold import TSNE as made
            from threadpoolctl import threadpool_limits
        except ImportError as error:
            raise InputError(
                "t-SNE needs scikit-learn: pip install 'perennial-id[analysis]'"
            ) from error
        self._made, self._threads = made, threadpool_limits

    def __call__(
        self,
        vectors: NDArray[np.float32],
        seed: int,
        *,
        perplexity: float = _PERPLEXITY,
        begin: NDArray[np.float64] | None = None,
    ) -> NDArray[np.float64]:
        """[n, 2] of `vectors` [n, d]: a function of them and of the other arguments.

        `begin` [n, 2] is where an earlier model's vectors of the same images came to lie: what is
        together still then stays about where it was. Raises InputError for fewer than five.
        """
        if len(vectors) < _FEWEST:
            raise InputError(
                f"{len(vectors)} features are too few for a picture: name more classes by --class"
            )
        made = self._made(
            perplexity=min(perplexity, (len(vectors) - 1) / 3),
            init="pca" if begin is None else begin.astype(np.float32),
            random_state=int(stream_key(seed, "t-SNE") % 2**32),
        )
        with self._threads(1):  # several threads add up in any order, and were slower
            return np.asarray(made.fit_transform(vectors), dtype=np.float64)
