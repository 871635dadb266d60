"""How the ranks of one machine find each other: through a file.

The store that Ray Train would start for them listens on every interface, and knows no password.
"""

import tempfile
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import ray
import torch.distributed as dist
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend


@dataclass
class FileRendezvous(TorchConfig):
    """Ray Train's settings of a process group, whose ranks all run on this machine."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """What forms the group."""
        return _FileBackend


def _join(number: int, **settings: Any) -> None:
    """Called on each rank, by its `number`."""
    dist.init_process_group(rank=number, **settings)


class _FileBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Called by Ray Train whenever the ranks were started, or started again."""
        # nobody else may read it; it is asked again whenever a part of the group forms one
        self._folder = tempfile.TemporaryDirectory(prefix="perennial-")
        worker_group.execute(_set_torch_distributed_env_vars)
        common = {
            "backend": backend_config.backend,
            "init_method": f"file://{Path(self._folder.name) / 'ranks'}",
            "world_size": len(worker_group),
            "timeout": timedelta(seconds=backend_config.timeout_s),
        }
        ray.get(
            [
                worker_group.execute_single_async(number, _join, number=number, **common)
                for number in range(len(worker_group))
            ]
        )

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        """Called when they have ended."""
        super().on_shutdown(worker_group, backend_config)
        self._folder.cleanup()
