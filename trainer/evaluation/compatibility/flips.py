"""Negative flips: trials that the old model got right and the new one, on old vectors, gets wrong.

The mean may rise while some identities get worse; these are the ones that an operator gets calls
about.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
WORST = 20
"""Most identities that are named."""


def flips(
    identity: Ids,
    before: NDArray[np.bool_],
    after: NDArray[np.bool_],
    names: Sequence[str],
) -> dict[str, Any]:
    """Counts over trials ([k], each of `identity`) that went right `before` and `after`.

    `worse` counts the identities whose share of right trials falls, and `worst` names those that
    lose most trials. `names` [n] are the identities'.
    """
    size = int(identity.max()) + 1
    trials = np.bincount(identity, minlength=size)
    lost = np.bincount(identity[before & ~after], minlength=size)
    won = np.bincount(identity[~before & after], minlength=size)
    fall = lost - won
    order = np.lexsort((np.arange(size), -fall / np.maximum(1, trials), -fall))
    worst = [i for i in order[:WORST].tolist() if fall[i] > 0]
    return {
        "trials": len(identity),
        "right_before": int(before.sum()),
        "right_after": int(after.sum()),
        "negative": int(lost.sum()),
        "positive": int(won.sum()),
        "identities": int((trials > 0).sum()),
        "worse": int((fall > 0).sum()),
        "better": int((fall < 0).sum()),
        "worst": [
            {
                "identity": names[i],
                "trials": int(trials[i]),
                "lost": int(lost[i]),
                "won": int(won[i]),
            }
            for i in worst
        ],
    }
