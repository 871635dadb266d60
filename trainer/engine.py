"""The DeepSpeed engine around the embedder.

The classifier stays outside: data-parallel reduction would mix different ranks' rows.
"""

import io
import logging
import os
from contextlib import redirect_stdout
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from trainer.heads.collectives import Ranks


def ensure_process_group() -> None:
    """Makes a process group of one where there is none: DeepSpeed does not work without."""
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        os.environ["LOCAL_RANK"] = "0"


def discard_gradients(engine: Any) -> None:
    """Throws away what `engine.backward` has gathered, at any ZeRO stage: `step` will not follow.

    ZeRO 1 and 2 keep averaged gradients of their own.
    """
    engine.zero_grad()
    averaged = getattr(engine.optimizer, "averaged_gradients", {})
    averaged.update(dict.fromkeys(averaged))


def prepare_deepspeed() -> Any:
    """The module, quiet, and without the kernel that it would build at its first start on a CPU.

    That takes a compiler and half a minute, others wait for it, and a killed build leaves a lock.
    It is for all-reduces of inference, which nobody asks for here.
    """
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    for name in ("DeepSpeed", "torch.utils.cpp_extension"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with redirect_stdout(io.StringIO()):
        import deepspeed  # reads DS_ACCELERATOR when it is imported

        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def build_engine(
    embedder: nn.Module, optimizer: torch.optim.Optimizer, batch: int, ranks: Ranks, zero: int = 0
) -> Any:
    """A DeepSpeed engine that averages the embedder's gradients over the ranks.

    The process group must exist. `batch` is the global batch: DeepSpeed wants it for its own
    accounting only, so uneven rank slices are fine. `zero` is the ZeRO stage, 0 to 2.
    """
    size = sum(parameter.numel() for parameter in embedder.parameters())
    deepspeed = prepare_deepspeed()
    with redirect_stdout(io.StringIO()):  # DeepSpeed prints what it does
        engine, *_ = deepspeed.initialize(
            model=embedder,
            optimizer=optimizer,
            config={
                "train_micro_batch_size_per_gpu": -(-batch // ranks.world),
                "gradient_accumulation_steps": 1,
                "gradient_clipping": 0.0,  # DeepSpeed's default is a norm of 1
                "steps_per_print": 2**31,
                "zero_allow_untested_optimizer": True,
                # DeepSpeed's own buckets are two gigabytes, whatever the embedder's size
                "zero_optimization": {
                    "stage": zero,
                    "reduce_bucket_size": size + size % 2,
                    "allgather_bucket_size": size + size % 2,
                },
            },
        )
    return engine
