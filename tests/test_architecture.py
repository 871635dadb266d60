"""Imports go one way: launch → trainer → data_shards, any of them → monitoring, untrusted."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "untrusted": {"untrusted"},
    "data_shards": {"data_shards", "untrusted"},
    "trainer": {"trainer", "data_shards", "monitoring.metrics", "untrusted"},
    "launch": {"launch", "trainer", "data_shards", "monitoring", "untrusted"},
    "monitoring": {"monitoring", "untrusted"},
}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
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


def test_nothing_unpickles():
    """Files are read as safetensors, JSON, YAML (safe) and Parquet only."""
    forbidden = {("pickle", "load"), ("pickle", "loads"), ("torch", "load"), ("yaml", "load")}
    for package in ALLOWED:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                    assert (node.value.id, node.attr) not in forbidden, path
