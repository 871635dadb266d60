"""Ray Train for ranks of this machine, without helpers that are for clusters or Ray's own datasets.

Apart: to import this is to import Ray.
"""

from typing import Any, cast

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy

_NEEDLESS = DatasetsCallback, PlacementGroupCleanerCallback


class LocalTrainer(TorchTrainer):
    """Starts three processes less than its parent, and ends twelve seconds earlier.

    One would hold Ray Data's datasets, which we have none of; one would ask for more machines. The
    third would give machines back when Ray Train's controller is killed, but here Ray itself ends
    with the driver. It asks Ray's dashboard, which there is none of either, and is waited for
    until that question times out.
    """

    def _create_default_callbacks(self) -> list[Any]:
        made = super()._create_default_callbacks()  # type: ignore[misc]  # Ray hides which class
        return [callback for callback in made if not isinstance(callback, _NEEDLESS)]

    def _initialize_and_run_controller(self, **given: Any) -> Any:
        given["scaling_policy"] = _AsManyAsThereAre(cast("Any", self.scaling_config))
        return super()._initialize_and_run_controller(**given)  # type: ignore[misc]


class _AsManyAsThereAre(FixedScalingPolicy):
    """Asks nobody for machines."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """Would begin to ask."""

    def _maybe_send_resource_request(self) -> None:
        """Would ask again."""
