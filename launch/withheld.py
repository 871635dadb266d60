"""How a run ends whose gate kept a model from being published."""

EXIT_CODE = 3
"""Of such a run, and of a comparison in which the criterion does not hold."""


class Withheld(Exception):
    """The run is finished, but not every model may be published: a line for each."""

    def __init__(self, why: list[str]) -> None:
        super().__init__("\n".join(why))
