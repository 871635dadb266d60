"""The error for training that came to nothing because of its own settings."""

from data_shards.settings import InputError


class Diverged(InputError):
    """Numbers grew out of all bounds. Repeating gives the same: that chain of a run cannot go on,
    the others can. The message names the setting to change."""
