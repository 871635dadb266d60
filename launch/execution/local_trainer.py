"""Ray Train for ranks of this machine, without helpers that are for clusters or Ray's own datasets.

Apart: to import this is to import Ray.
"""

import asyncio
import logging
import os
import threading
from typing import Any, cast

import ray
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup

_NEEDLESS = DatasetsCallback, PlacementGroupCleanerCallback


class LocalTrainer(TorchTrainer):
    """Starts four processes less than its parent, and ends twelve seconds earlier.

    One would hold Ray Data's datasets, which we have none of; one would ask for more machines. The
    third would give machines back when Ray Train's controller is killed, but here Ray itself ends
    with the driver. It asks Ray's dashboard, which there is none of either, and is waited for
    until that question times out. The fourth is the controller's own: it works in the thread that
    calls `fit`, and so needs no process that first imports all of Ray Train and torch.
    """

    def __init__(self, *given: Any, **settings: Any) -> None:
        super().__init__(*given, **settings)
        self._forsaken = threading.Event()

    def forsake(self) -> None:
        """Lets `fit` end soon, whatever the ranks do: Ray ends next."""
        self._forsaken.set()

    def _create_default_callbacks(self) -> list[Any]:
        made = super()._create_default_callbacks()  # type: ignore[misc]  # Ray hides which class
        return [callback for callback in made if not isinstance(callback, _NEEDLESS)]

    def _initialize_and_run_controller(self, **given: Any) -> Any:
        given["scaling_policy"] = _AsManyAsThereAre(cast("Any", self.scaling_config))
        # the controller would log to the terminal; what went wrong is told by `TellFailures`
        os.environ.setdefault("RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING", "0")
        logging.getLogger("ray.train").setLevel(logging.CRITICAL + 1)
        controller = _Controller(self._forsaken, **given)
        asyncio.run(controller.run())
        return controller.get_result()


class _AsManyAsThereAre(FixedScalingPolicy):
    """Asks nobody for machines."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """Would begin to ask."""

    def _maybe_send_resource_request(self) -> None:
        """Would ask again."""


class _Group(WorkerGroup):
    """Ranks whose controller is no actor that they could ask for checkpoints: ours keep none so."""

    def _init_train_context_on_workers(
        self, workers: Any, sync_actor: Any, train_context_args: dict[str, list[Any]]
    ) -> None:
        common = {
            "train_run_context": self._train_run_context,
            "synchronization_actor": sync_actor,
            "storage_context": self._storage_context,
            "worker_callbacks": self._worker_callbacks_to_propagate,
            "controller_actor": None,
        }
        ray.get(
            [
                worker.actor.init_train_context.remote(
                    distributed_context=worker.distributed_context,
                    **common,
                    **{name: values[number] for name, values in train_context_args.items()},
                )
                for number, worker in enumerate(workers)
            ]
        )


class _Controller(TrainController):
    """In the driver's own process."""

    worker_group_cls = _Group

    def __init__(self, forsaken: threading.Event, **given: Any) -> None:
        super().__init__(**given)
        self._forsaken = forsaken

    async def _run_control_loop_iteration(self) -> None:
        if self._forsaken.is_set():  # else it would start ranks anew, which end with Ray
            raise asyncio.CancelledError
        await super()._run_control_loop_iteration()
