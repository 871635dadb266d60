"""DeepSpeed's CPU kernel, built by whichever process needs it first."""

import fcntl
from pathlib import Path


def load_cpu_kernel() -> None:
    """Builds or loads the kernel that DeepSpeed's start on a CPU would build or load.

    torch marks a build by a file, and waits for ever for one that a killed process left.
    """
    from deepspeed.accelerator import get_accelerator
    from torch.utils.cpp_extension import _get_build_directory  # warns where there is no GPU

    builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    if builder is None:  # on a GPU
        return
    folder = Path(_get_build_directory(builder.name, verbose=False))
    with (folder / "perennial.lock").open("w", encoding="utf-8") as ours:
        fcntl.flock(ours, fcntl.LOCK_EX)  # until closed, or until this process is dead
        remove_if_dead(folder / "lock")
        builder.load()


def remove_if_dead(lock: Path) -> None:
    """Deletes a lock file that no process of this machine holds open, as its owner does."""
    for link in Path("/proc").glob("[0-9]*/fd/*") if lock.exists() else ():
        try:
            if link.readlink() == lock:
                return
        except OSError:  # the process has ended, or is another user's
            continue
    lock.unlink(missing_ok=True)
