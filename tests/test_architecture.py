"""Imports go one way: launch → trainer → data_shards, any of them → monitoring, untrusted."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from launch.phases.registry import KINDS

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "perennial": {"perennial", "launch", "trainer", "data_shards", "monitoring", "untrusted"},
    "untrusted": {"untrusted"},
    "data_shards": {"data_shards", "monitoring.run_folder", "untrusted"},
    "trainer": {"trainer", "data_shards", "monitoring.metrics", "untrusted"},
    "launch": {"launch", "trainer", "data_shards", "monitoring", "untrusted"},
    "monitoring": {"monitoring", "untrusted"},
}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_go_one_way(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        for module in imported(path):
            if module.split(".")[0] in {*ALLOWED, "benchmarks", "tests"}:
                allowed = any(module == a or module.startswith(a + ".") for a in ALLOWED[package])
                assert allowed, f"{path.relative_to(ROOT)} imports {module}"


ROOMS = {
    "launch": {
        "exits": (),
        "root": (),
        "machine": (),
        "terminal": (),
        "config": ("root",),
        "runs": ("config", "root"),
        "inference": ("runs",),
        "planning": ("config", "phases", "runs"),
        "execution": ("config", "exits", "inference", "machine", "runs"),
        "clusters": ("config", "exits", "machine", "planning", "root", "runs", "terminal"),
        "phases": ("config", "execution", "exits", "inference", "runs", "terminal"),
        "models": ("config", "execution", "exits", "inference", "runs", "terminal"),
        "analyses": ("phases", "runs", "terminal"),
        "commands": (
            *(
                "analyses",
                "clusters",
                "config",
                "execution",
                "exits",
                "inference",
                "models",
                "phases",
                "planning",
            ),
            *("runs", "terminal"),
        ),
        "cli": ("commands", "machine", "terminal"),
        "ranks": ("commands", "machine", "terminal"),
    },
    "data_shards": {
        **dict.fromkeys(("settings", "cores", "files", "counter_rng"), ()),
        "parallel": ("settings",),
        "alignment": (),
        "sources": ("alignment", "cores", "counter_rng", "parallel", "settings"),
        "storage": ("files", "settings", "sources"),
        "orders": ("counter_rng", "settings"),
        "augmentation": ("counter_rng", "settings"),
        "images": ("settings", "sources"),
        "writing": ("files", "images", "parallel", "settings", "sources", "storage"),
        "splits": ("counter_rng", "files", "settings", "sources", "storage", "writing"),
        "quarantine": ("orders", "settings", "storage"),
        "pipeline": ("augmentation", "orders", "quarantine", "settings", "storage"),
        "sheet": ("counter_rng", "sources", "storage"),
    },
}
"""Of each package with rooms: which rooms a room may import. Rooms are folders, or single files."""


@pytest.mark.parametrize("package", ROOMS)
def test_rooms_import_the_rooms_below_them(package):
    allowed, found = ROOMS[package], {}
    for path in sorted((ROOT / package).rglob("*.py")):
        first = path.relative_to(ROOT / package).parts[0].removesuffix(".py")
        if first == "__init__":
            continue
        for module in imported(path):
            parts = module.split(".")
            if parts[0] == package and len(parts) > 1 and parts[1] != first:
                found.setdefault(first, set()).add(parts[1])
        found.setdefault(first, set())
    assert found.keys() == allowed.keys(), "a room that the table does not name, or lacks"
    for room, others in found.items():
        assert others <= set(allowed[room]), room
        unused = set(allowed[room]) - others
        assert not unused, f"{room} does not import {unused}: take it out of the table"


@pytest.mark.parametrize("package", ROOMS)
def test_rooms_have_no_circles(package):
    """Each room is above those it imports: some order of building them exists."""
    tuple(TopologicalSorter(ROOMS[package]).static_order())


OTHER_MEANINGS = {
    "benchmarks/embedding.py",  # the command, not the phase of a run
    "launch/commands/benchmark_files.py",  # the parts of a dataset that is split
    "launch/commands/importing.py",  # folders that are called as parts of a split
    "launch/commands/runs.py",  # a key of compare --json
    "monitoring/live/extent.py",  # keys of the configuration
    "monitoring/run_folder.py",  # a folder of a run
    "trainer/methods/spelling.py",  # how released fingerprints spell recipes
}
"""Where a word that is a kind's name, too, means something else. Roles in data_shards do."""


def test_a_kind_of_phase_is_named_in_its_own_file_alone():
    """So that a new one touches its file and the registry; see tests/integration/test_toy_paper."""
    names, own = {kind.name for kind in KINDS}, {type(kind).__module__ for kind in KINDS}
    found = set()
    for package in ("launch", "monitoring", "trainer", "benchmarks"):
        for path in (ROOT / package).rglob("*.py"):
            file = str(path.relative_to(ROOT))
            if file.removesuffix(".py").replace("/", ".") in own:
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and node.value in names:
                    found.add(file)
    assert found == OTHER_MEANINGS


def _is_text_without_encoding(call):
    """Whether a call opens text without saying its encoding; ruff's rule sees known types only."""
    given = {keyword.arg for keyword in call.keywords}
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    modes = [c.value for c in call.args if isinstance(c, ast.Constant)]
    opens = name == "open" and ("newline" in given or {*modes} & {"r", "w", "a", "x", "r+"})
    reads = name == "read_text" or (name == "write_text" and len(call.args) == 1)
    runs = "text" in given and name in ("run", "Popen", "check_output")
    return (opens or reads or runs) and "encoding" not in given


def test_text_is_utf_8_whatever_the_locale():
    """A run begun on a machine with LANG=C is read on another one."""
    for package in (*ALLOWED, "benchmarks"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    assert not _is_text_without_encoding(node), f"{path}:{node.lineno}"


def test_yaml_is_read_and_written_in_one_place():
    for package in (*ALLOWED, "benchmarks"):
        for path in (ROOT / package).rglob("*.py"):
            assert "yaml" not in imported(path) or path.name == "yaml_text.py", path


def test_nothing_unpickles():
    """Files are read as safetensors, JSON, YAML (safe) and Parquet only."""
    forbidden = {("pickle", "load"), ("pickle", "loads"), ("torch", "load"), ("yaml", "load")}
    for package in ALLOWED:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                    assert (node.value.id, node.attr) not in forbidden, path


@pytest.mark.reliability(9, "pictures are opened in one place, by formats that start no program")
def test_pictures_are_opened_in_one_place():
    calls = {
        str(path.relative_to(ROOT))
        for package in ALLOWED
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Image.open")
    }
    assert calls == {"untrusted/pictures.py"}
