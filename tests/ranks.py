"""Runs a function on real gloo ranks, each a process of its own."""

import os
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

CONTEXT = mp.get_context("forkserver")
# each rank is a fork of a process that has made these imports, which take seconds; the first
# optimizer imports torch._dynamo, the first pipeline DALI
IMPORTS = ["deepspeed", "tests.trainer.loops", "torch._dynamo", "nvidia.dali", "tests.frozen"]
CONTEXT.set_forkserver_preload(IMPORTS)


def import_all() -> None:
    """Makes those imports in this process, which is to be forked."""
    for module in IMPORTS:
        import_module(module)


def _rank(rank: int, world: int, function: Callable, args: tuple, folder: Path) -> None:
    os.environ.update(LOCAL_RANK=str(rank), RANK=str(rank), WORLD_SIZE=str(world))
    torch.set_num_threads(1)
    try:
        store = dist.FileStore(str(folder / "store"), world)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
        dist.barrier()  # a rank that is done at once would end while another still connects to it
        torch.save(function(*args), folder / f"{rank}.pt")
        if dist.is_initialized():
            dist.barrier()  # nor would the others' last exchange, of a group made late, be over
    except BaseException:
        (folder / f"{rank}.error").write_text(traceback.format_exc())
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def on_ranks(world: int, function: Callable, *args: Any, folder: Path) -> list[Any]:
    """What `function` returned on each of `world` ranks."""
    folder.mkdir(parents=True, exist_ok=True)
    processes = [
        CONTEXT.Process(target=_rank, args=(rank, world, function, args, folder))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    errors = [path.read_text() for path in sorted(folder.glob("*.error"))]
    assert not errors, "\n".join(errors)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]
