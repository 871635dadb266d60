"""What a rank keeps from one job to the next: the opened run, and no memory of the job."""

import gc
from pathlib import Path

import psutil

from data_shards.pipeline import ImageStream
from launch.config.load import load_config
from launch.execution.rank import RankJobs
from launch.phases.train import TrainingJob, train_step
from launch.runs.run import Chain, Run
from monitoring.metrics import Metrics
from tests.ranks import on_ranks
from trainer.activity import Activity
from trainer.engine import prepare_deepspeed
from trainer.heads.collectives import Ranks

CONFIG = """
dataset: {dataset}
benchmark: {{steps: 1, train_identities: 36, test_identities: 24, pairs: 40, seen_identities: 6}}
embedder: {{architecture: small, width: 64, dimension: 512}}
training: {{iterations: 2, batch: 24, milestones: [1], checkpoint_every: 1}}
methods: {{finetune: {{}}}}
seeds: [0, 1, 2, 3, 4, 5, 6]
cluster: {{workers: 1, threads: 1}}
"""
WARM = 3
"""Jobs after which libraries have what they keep for good."""
MODEL_BYTES = 30e6
"""The embedder of `CONFIG`, with gradients and momentum: what a job left behind would hold."""


def growth(config: Path, out: Path) -> tuple[float, list[str], int]:
    """Bytes that each later job adds, what is left of all of them, how often the run was opened."""
    run, opened = load_config(config), []

    def open_run(count):
        opened.append(Run.open(out, run, count))
        return opened[-1]

    process, sizes = psutil.Process(), []
    engine = prepare_deepspeed().runtime.engine.DeepSpeedEngine
    jobs = RankJobs(open_run, Ranks.default(), lambda record: None, with_driver=True)
    for seed in run.seeds:
        chain = Chain("finetune", seed)
        spec = TrainingJob(chain, 0, origin="")
        jobs.do(train_step, spec, phase=chain.name, metrics=Metrics(), activity=Activity())
        sizes.append(process.memory_info().rss)
    left = [type(o).__name__ for o in gc.get_objects() if isinstance(o, (engine, ImageStream))]
    return (sizes[-1] - sizes[WARM]) / (len(sizes) - WARM - 1), left, len(opened)


def test_a_rank_does_not_grow_with_the_number_of_its_jobs(small_folder, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(dataset=small_folder))
    ((each, left, opened),) = on_ranks(1, growth, config, tmp_path / "run", folder=tmp_path / "r")
    assert list((tmp_path / "run").glob("chains/finetune/seed-6/steps/0/model/*.safetensors"))
    assert not left, "a job's engine or pipeline outlived it"
    assert each < MODEL_BYTES / 4
    assert opened == 1
