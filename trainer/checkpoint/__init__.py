"""Checkpoints of a training phase and finished models: saved atomically, and verified.

`format` defines a saved folder, `store` its place, `fence` the right to write there, `writer` how
ranks save one together, `policy` which are kept; `rows` and `optimizer` make the content
independent of the world size.
"""

from trainer.checkpoint.checkpoints import Checkpoints
from trainer.checkpoint.fence import Fence, unfenced
from trainer.checkpoint.format import DamagedError, Folder
from trainer.checkpoint.writer import save_folder

__all__ = ["Checkpoints", "DamagedError", "Fence", "Folder", "save_folder", "unfenced"]
