"""Ray Train for ranks of this machine, without helpers that are for clusters or Ray's own datasets.

Apart: to import this is to import Ray.
"""

from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

_NEEDLESS = DatasetsCallback, PlacementGroupCleanerCallback


class LocalTrainer(TorchTrainer):
    """Starts two processes less than its parent, and ends twelve seconds earlier.

    One would hold Ray Data's datasets, which we have none of. The other would give machines back
    when Ray Train's controller is killed; here Ray itself ends with the driver. It asks Ray's
    dashboard, which there is none of either, and is waited for until that question times out.
    """

    def _create_default_callbacks(self) -> list[Any]:
        made = super()._create_default_callbacks()  # type: ignore[misc]  # Ray hides which class
        return [callback for callback in made if not isinstance(callback, _NEEDLESS)]
