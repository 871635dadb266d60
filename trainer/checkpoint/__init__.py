"""Checkpoints of a training phase and finished models: saved whole or not at all, and verified.

`format` says what a saved folder is, `store` where it goes, `fence` who may write there, `writer`
how ranks save one together, `policy` which are kept; `rows` and `optimizer` make their content free
of the world size.
"""

from trainer.checkpoint.checkpoints import Checkpoints
from trainer.checkpoint.fence import Fence, unfenced
from trainer.checkpoint.format import DamagedError, Folder
from trainer.checkpoint.writer import save_folder

__all__ = ["Checkpoints", "DamagedError", "Fence", "Folder", "save_folder", "unfenced"]
