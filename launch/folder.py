"""The layout of a run folder, and what identifies each phase's work."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_shards.benchmark import Benchmark, build_benchmark
from data_shards.dataset import ShardDataset
from data_shards.files import fingerprint
from data_shards.remote import Count, ignore
from data_shards.settings import InputError
from launch.config import RunConfig
from launch.held_out import HeldOutTest, open_tests
from trainer.methods.recipe import Recipe
from trainer.model import Model
from trainer.optimizers import TrainingSettings, for_all_data
from trainer.task import Task


@dataclass(frozen=True)
class Chain:
    """One method under one seed: its learning steps in order."""

    method: str
    seed: int

    @property
    def name(self) -> str:
        """Names the chain in folders, the ledger and metrics."""
        return f"{self.method}/seed-{self.seed}"


@dataclass(frozen=True)
class Run:
    """A run: its folder, its configuration, and the data they speak of."""

    folder: Path
    config: RunConfig
    dataset: ShardDataset
    benchmark: Benchmark
    held_out: dict[str, HeldOutTest]
    """Test sets of their own."""

    @classmethod
    def open(cls, folder: Path, config: RunConfig, count: Count = ignore) -> "Run":
        """Opens the datasets and builds the benchmark. Raises InputError.

        `count` hears what the cache of a remote dataset does.
        """
        config = config.model_copy(update={"benchmark": config.benchmark.pinned()})
        tests = open_tests(config.evaluation)
        dataset = ShardDataset.open(config.dataset, config.data.cache, count)
        return cls(folder, config, dataset, build_benchmark(dataset, config.benchmark), tests)

    def chains(self) -> list[Chain]:
        """Every method under every seed; the seeds of one method follow each other last."""
        return [Chain(m, s) for s in self.config.seeds for m in self.config.methods]

    def step_folder(self, chain: Chain, step: int) -> Path:
        """Where a learning step's outputs go."""
        return self.folder / "chains" / chain.name / "steps" / str(step)

    def recipe(self, chain: Chain, step: int) -> Recipe:
        """The chain's recipe as it applies at `step`."""
        recipe = self.config.methods[chain.method].recipe()
        return recipe.at(step, self.benchmark.rows_before(step))

    def previous(self, chain: Chain, step: int) -> Model | None:
        """The verified model of the step before."""
        return Model.open(self.step_folder(chain, step - 1) / "model") if step else None

    def training(self, chain: Chain, step: int) -> TrainingSettings:
        """The schedule of a learning step."""
        whole = self.recipe(chain, step).data == "all"
        return for_all_data(self.config.training, step) if whole else self.config.training

    def task(self, chain: Chain, step: int) -> Task:
        """The training phase of one step. The step before must be finished."""
        config, folder = self.config, self.step_folder(chain, step)
        return Task(
            dataset=self.dataset,
            benchmark=self.benchmark,
            data=config.data,
            embedder=config.embedder,
            classifier=config.classifier,
            training=self.training(chain, step),
            teacher=config.teacher,
            recipe=self.recipe(chain, step),
            seed=chain.seed,
            step=step,
            previous=self.previous(chain, step),
            cache=folder / "neighbours",
            prototypes=folder / "prototypes.safetensors",
            folder=folder,
            checkpoints=self.checkpoints(chain, step),
        )

    def checkpoints(self, chain: Chain, step: int) -> str:
        """Path or URL of a learning step's checkpoints."""
        url = self.config.training.checkpoint_url
        if url is None:
            return str(self.step_folder(chain, step) / "checkpoints")
        return f"{url.rstrip('/')}/chains/{chain.name}/steps/{step}/checkpoints"

    def fingerprint(self, chain: Chain, step: int) -> str:
        """Equal for training phases that give the same model: same data, recipe, seed and past."""
        deciding = self.config.deciding()
        common = [deciding[k] for k in ("benchmark", "data", "embedder", "classifier", "training")]
        recipe = self.recipe(chain, step)
        teacher = deciding["teacher"] if recipe.needs.any else None
        past = self.fingerprint(chain, step - 1) if step else self.dataset.fingerprint
        return fingerprint([common, recipe.fingerprint(), teacher, chain.seed, step, past])


def check_steps(rows: Sequence[int], images: Sequence[int], workers: int) -> None:
    """Raises InputError when a learning step has fewer identities than workers, or no image.

    `rows` are the identities learned after each step, `images` those to train on in each.
    """
    first = 0
    for step, (last, count) in enumerate(zip(rows, images, strict=True)):
        if last - first < workers:
            raise InputError(
                f"learning step {step} has {last - first} identities, fewer than cluster.workers = "
                f"{workers}: lower the workers or benchmark.steps, or raise train_identities"
            )
        if count == 0:
            raise InputError(
                f"learning step {step} has no image left to train on: lower "
                "benchmark.seen_identities or benchmark.steps"
            )
        first = last
