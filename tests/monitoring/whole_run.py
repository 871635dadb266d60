"""A finished run's folder with every file that a run writes, made without training."""

import json
from pathlib import Path
from typing import Any

import torch
import yaml

from data_shards.files import write_json
from launch.config.run import RunConfig
from launch.phases.planning import phases
from launch.runs.ledger import Ledger
from launch.runs.run import Run
from tests.monitoring.test_compatibility import compared
from tests.monitoring.test_report import jpeg
from trainer.backbones import EmbedderSettings, build_embedder
from trainer.heads.collectives import Ranks
from trainer.heads.margin_loss import ClassifierSettings, MarginLoss
from trainer.heads.rows import ShardedRows
from trainer.model import save_model

_ROC = [[0.001, 0.5], [0.01, 0.75], [1.0, 1.0]]
_TESTS = {
    "lfw": {"accuracy": 0.9, "tar": {"0.001": 0.5, "0.01": 0.75}, "roc": _ROC, "pairs": 60},
    "megaface": {part: {"rank1": 0.5, "cmc": [0.5, 0.6]} for part in ("raw", "cleaned")},
    "ijbc": {"tar": {"0.0001": 0.2}, "tpir": {"0.1": 0.3}, "open_set": _ROC},
}
FILES = {
    "run.yaml": "report",
    "phases.json": "status",
    "ledger.jsonl": "status report live",
    "metrics.jsonl": "status report live",
    "events.jsonl": "status report live",
    "logs/driver.jsonl": "logs",
    "targets/driver.json": "live",
    "chains/fkd/seed-0/steps/1/evaluation.json": "compare report live",
    "chains/fkd/seed-0/steps/1/compatibility.json": "compare report",
    "chains/fkd/seed-0/steps/1/examples.json": "report",
    "chains/fkd/seed-0/steps/1/neighbour_examples.json": "report",
    "chains/fkd/seed-0/steps/1/exemplars.json": "compare report",
    "analyses/similarity.json": "report",
    "analyses/confusion.json": "report",
    "analyses/features/fkd/seed-0/step-1.json": "report",
    "analyses/features/fkd/seed-0/over-steps.json": "report",
    "analyses/attention/fkd/seed-0.json": "report",
}
"""Those that somebody may have damaged, and which commands look at each."""

_LAYERS = {
    name: {"mean": mean, "floor": 0.1, "directions": [3, 4]}
    for name, mean in (("block 1", 0.75), ("embedding", 0.5))
}
ANALYSES: dict[str, Any] = {
    "similarity.json": {
        "version": 1,
        "variance": 0.99,
        "chains": [
            {
                "method": "fkd",
                "seed": 0,
                "of": "models",
                "cells": [{"task": 0, "step": 1, "images": 9, "layers": _LAYERS}],
            }
        ],
    },
    "confusion.json": {
        "version": 1,
        "meta": {"source": "a file", "groups": [{"name": "ids", "classes": ["id-1", "id-2"]}]},
        "chains": [
            {
                "method": "fkd",
                "seed": 0,
                "steps": [
                    {
                        "step": step,
                        "images": 9,
                        "wrong": 3 + step,
                        "confusion": 2,
                        "forgetting": step,
                        "other": 1,
                    }
                    for step in range(2)
                ],
            }
        ],
    },
    "features/fkd/seed-0/step-1.json": {
        "version": 1,
        "method": "fkd",
        "seed": 0,
        "step": 1,
        "model": "model",
        "groups": [
            {"label": "id-1", "origin": origin, "points": [[0.0, n], [1.0, 2.0]]}
            for n, origin in enumerate(("test", "exemplar", "generated"))
        ],
    },
    "features/fkd/seed-0/over-steps.json": {
        "version": 1,
        "method": "fkd",
        "seed": 0,
        "steps": [
            {
                "step": step,
                "model": "model",
                "groups": [
                    {"label": "id-1", "origin": "test", "points": [[0.0, step], [1.0, 2.0]]}
                ],
            }
            for step in range(2)
        ],
    },
    "attention/fkd/seed-0.json": {
        "version": 1,
        "method": "fkd",
        "seed": 0,
        "of": "true",
        "steps": [0, 1],
        "images": [
            {
                "image": "a/1",
                "label": "id-1",
                "jpeg": jpeg(),
                "maps": [{"step": 1, "said": "id-2", "right": False, "jpeg": jpeg()}],
            }
        ],
    },
}
"""What `perennial analyse` leaves in its folder."""


def write_whole_run(folder: Path, dataset: Path) -> Path:
    """Two methods, one seed, two learning steps: fkd and finetune of 36 identities in all."""
    values = {
        "dataset": str(dataset),
        "methods": {"finetune": {}, "fkd": {"neighbours": 5}},
        "benchmark": {"steps": 2, "train_identities": 36, "test_identities": 24, "pairs": 40},
        "embedder": {"width": 2, "depth": 1, "dimension": 4},
        "evaluation": {"compatibility": {}},
    }
    config = RunConfig.model_validate(values)
    folder.mkdir(parents=True)
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    (folder / "run.yaml").write_text(text, encoding="utf-8")
    run, at = Run.open(folder, config), 1.7e9
    write_json(folder / "phases.json", [phase.planned for phase in phases(run)])
    ledger = Ledger.open(folder / "ledger.jsonl")
    begun = {"time": at, "event": "attempt", "attempt": 1, "host": "a", "pid": 7}
    lines = [{**begun, "phases": 11, "left": 11}]
    for phase in phases(run):
        phase.output.path.parent.mkdir(parents=True, exist_ok=True)
        _write_output(run, phase.kind.name, phase.output.path, phase.at.number)
        times = {"started": at, "finished": at + 5}
        ledger.add({**phase.facts, **times, "cpus": 2, "gpus": 0, "attempt": 1})
        at += 6
    lines.append({"time": at, "event": "restart", "rank": 0, "phase": "fkd/seed-0/step-1/train"})
    lines.append({"time": at, "event": "notice", "message": "rank 1 was ended"})
    write_lines(folder / "events.jsonl", lines)
    write_lines(folder / "metrics.jsonl", [_metrics(i, at + i) for i in range(10, 60, 10)])
    (folder / "logs").mkdir()
    log = {"time": at, "level": "info", "run": "r", "job": "driver", "logger": "perennial"}
    log |= {"rank": 0, "phase": "fkd/seed-0/step-1/train", "iteration": 3, "message": "begins"}
    write_lines(folder / "logs" / "driver.jsonl", [log, {**log, "traceback": "a\nb"}])
    (folder / "targets").mkdir()
    target = [{"targets": ["127.0.0.1:1"], "labels": {"job": "driver", "run": "r"}}]
    (folder / "targets" / "driver.json").write_text(json.dumps(target), encoding="utf-8")
    for name, value in ANALYSES.items():
        write_json(folder / "analyses" / name, value)
    return folder


def classified(step: int) -> dict[str, Any]:
    """The figures on learned classes after a step, as evaluation.json has them."""
    tasks = [0.5 - 0.1 * (step - task) for task in range(step + 1)]
    share = 1 / (step + 1)
    figures = {"class_accuracy": 0.5, "average_accuracy": 0.6, "task_accuracy": 0.55}
    if step:
        figures |= {"forgetting": 0.1, "first_drop": 0.1, "old_as_new": 0.3, "new_as_old": 0.2}
    figures |= {"tasks": tasks, "confusion": [[share] * (step + 1)] * (step + 1)}
    return {**figures, "model_bytes": {"network": 4_200_000, "rows": 10_240}}


def kept(step: int, jpeg: str) -> dict[str, Any]:
    """What exemplars.json says of the exemplars that a step leaves."""
    shown = [{"identity": "id-1", "jpegs": [jpeg, jpeg]}]
    return {"images": 40, "identities": 20, "bytes": 51_000, "pixel_bytes": 30_720, "shown": shown}


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    """A JSON lines file."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def _metrics(iteration: int, at: float) -> dict[str, Any]:
    rates = {"images_per_second": 900.0, "data_wait_share": 0.1, "seconds": 1.0, "iterations": 10}
    counts = {"skipped": 0, "rewinds": 0, "restarts": 1, "iteration": iteration, "of": 60}
    losses = {"loss": 2.5, "classify": 2.0, "distill": 0.5, "learning_rate": 0.1}
    return {"time": at, "phase": "fkd/seed-0/step-1/train", **counts, **rates, **losses}


def _write_output(run: Run, kind: str, output: Path, step: int) -> None:
    def write(name: str, value: Any) -> None:
        output.with_name(name).write_text(json.dumps(value), encoding="utf-8")

    picture = {"identity": "id-1", "jpeg": jpeg()}
    if kind == "train":
        settings, ranks = EmbedderSettings(width=2, depth=1, dimension=4), Ranks()
        rows = ShardedRows.new(0, run.benchmark.row_ends[step], 4, 0, ranks)
        names = [f"id-{row}" for row in range(rows.last)]
        classifier = MarginLoss(ClassifierSettings(), 0, torch.device("cpu"))
        net = build_embedder(settings)
        save_model(output, settings, (16, 16), classifier, net, [rows], names, ranks)
    elif kind == "neighbours":
        output.mkdir()
        write("neighbour_examples.json", [{"query": picture, "found": [picture]}])
    elif kind == "evaluate":
        figures = {"top1": 0.5, "map": 0.4, "verification": 0.8, "cmc": [0.5, 0.6], "roc": _ROC}
        write("evaluation.json", {**figures, **classified(step), "queries": 9, "tests": _TESTS})
        write("exemplars.json", kept(step, picture["jpeg"]))
        write("examples.json", [{"query": picture, "found": [picture]}])
        output.with_name("embeddings.safetensors").write_bytes(b"")
    elif kind == "compatibility":
        against = [compared(step, earlier) for earlier in range(step)]
        write("compatibility.json", {"holds": True, "paragon": None, "against": against})
