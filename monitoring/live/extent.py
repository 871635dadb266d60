"""How much a run's configuration asks for."""

from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from monitoring.live.values import Chain
from monitoring.records import reason
from monitoring.run_folder import COMPARISONS_FILE, CONFIG_FILE, EVALUATION_FILE, METHOD
from monitoring.schemas import MOST_STEPS
from untrusted.errors import InputError
from untrusted.files import read_bytes
from untrusted.yaml_text import parse_yaml

_CONFIG_BYTES, _MOST_STEPS = 1 << 16, 100_000


_Method = Annotated[str, Field(pattern=f"^{METHOD.pattern}$")]


def _given(value: Any) -> bool | None:
    """Whether there is something: what it is, nobody looks at."""
    return None if value is None else True


_Given = Annotated[bool | None, BeforeValidator(_given)]


@with_config(ConfigDict(strict=True))
class _Benchmark(TypedDict):
    steps: Annotated[int, Field(ge=0, lt=MOST_STEPS)]
    evaluate: NotRequired[Annotated[str, Field(max_length=100)]]


@with_config(ConfigDict(strict=True))
class _Evaluation(TypedDict):
    compatibility: NotRequired[_Given]


@with_config(ConfigDict(strict=True))
class Asked(TypedDict):
    """What is looked at of a run.yaml."""

    dataset: Annotated[str, Field(max_length=4096)]
    methods: Annotated[dict[_Method, _Given], Field(min_length=1, max_length=10_000)]
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=10_000)]
    benchmark: _Benchmark
    evaluation: _Evaluation
    continues: NotRequired[_Given]


_SCHEMA = TypeAdapter(Asked)


class Damaged(ValueError):
    """A run.yaml that no run can have written; the message says what is wrong with it."""


class Extent:
    """How much a run's configuration asks for."""

    def __init__(self, config: Any, text: str = "") -> None:
        """`text` is the configuration as it was written. Raises Damaged."""
        try:
            asked: Asked = _SCHEMA.validate_python(config)
        except ValidationError as error:
            raise Damaged(f"{CONFIG_FILE} lacks what every run has ({reason(error)})") from error
        self.text, self.dataset = text, asked["dataset"]
        self.asked, self.evaluate = asked["benchmark"]["steps"], asked["benchmark"].get("evaluate")
        self.steps = self.asked + (asked.get("continues") is not None)
        self.compared = asked["evaluation"].get("compatibility") is not None
        self.settings: dict[str, Any] = config["methods"]
        """Of each method, of no certain shape."""
        self.methods, self.seeds = list(asked["methods"]), list(dict.fromkeys(asked["seeds"]))
        if self.steps * len(self.methods) * len(self.seeds) > _MOST_STEPS:
            raise Damaged(f"{CONFIG_FILE} asks for more learning steps than any run has")
        self.chains = {(method, seed) for seed in self.seeds for method in self.methods}

    def wants(self, chain: Chain, step: int, file: str) -> bool:
        """Whether a learning step of the run ends with such a file."""
        compared = self.compared and step > 0 and file == COMPARISONS_FILE
        known = chain in self.chains and 0 <= step < self.steps
        return known and (compared or file == EVALUATION_FILE)

    @property
    def wanted(self) -> int:
        """The number of files that `wants` is true of."""
        compared = max(0, self.steps - 1) if self.compared else 0
        return len(self.chains) * (self.steps + compared)


def extent(root: Path, folder: Path) -> Extent:
    """That of a run folder. Raises Damaged."""
    try:
        content = read_bytes(folder / CONFIG_FILE, _CONFIG_BYTES, root)
        return Extent(parse_yaml(content, CONFIG_FILE), content.decode())
    except OSError as error:
        raise Damaged(f"{CONFIG_FILE} cannot be read ({error.strerror or error})") from error
    except InputError as error:
        raise Damaged(str(error)) from error
