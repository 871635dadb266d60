"""A wheel has everything that commands need, in one package, beside whatever else is installed."""

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from launch.root import PACKAGES
from tests.perennial import notebook

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "notebooks" / "first_steps.ipynb"
SOURCES = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
DATA = ("configs", "k8s")
FIRST = (
    "perennial --help",
    "perennial demo glyphs.identities=120 benchmark.steps=1 benchmark.train_identities=60 "
    "benchmark.test_identities=40 benchmark.seen_identities=20 benchmark.pairs=100 "
    "training.iterations=3 training.milestones=[] methods='{finetune: {}}' cluster.workers=0 "
    "cluster.actors=1",
    "perennial report runs/demo",
)
"""What a newcomer may do first, in an empty folder; the notebook is what comes then."""
EVERY_MODULE = """
import importlib, pkgutil, perennial
for one in pkgutil.walk_packages(perennial.__path__, "perennial."):
    importlib.import_module(one.name)
print(perennial.__version__, perennial.__file__)
"""


def files_of(folder: Path) -> set[str]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder.parent)) for path in found if path.suffix != ".pyc"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, since a build leaves files beside its sources."""
    copy = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        shutil.copy(ROOT / name, copy)
    for name in (*PACKAGES, *DATA):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    out = tmp_path_factory.mktemp("wheel")
    quiet = "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"
    build = ["wheel", *quiet, "--no-build-isolation", "--wheel-dir", out, copy]
    subprocess.run([sys.executable, "-m", "pip", *build], env=outside(), check=True)
    (found,) = out.iterdir()
    return found


@pytest.fixture(scope="module")
def programs(wheel, tmp_path_factory):
    """The programs of a new environment: the wheel, and the packages that tests run with, but not
    the repository."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False)
    pip = [sys.executable, "-m", "pip", "--python", home / "bin" / "python"]
    install = ["install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
    subprocess.run([*pip, *install, wheel], env=outside(), check=True)
    (packages,) = home.glob("lib/python*/site-packages")
    others = {sysconfig.get_paths()[name] for name in ("purelib", "platlib")}
    # folders that a .pth names have theirs not read: that of an editable installation is one
    (packages / "others.pth").write_text("\n".join(others), encoding="utf-8")
    return home / "bin"


def outside(programs: Path | None = None) -> dict[str, str]:
    """The environment of a process that must not find the repository."""
    found = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if programs is not None:
        found["PATH"] = f"{programs}{os.pathsep}{found['PATH']}"
    return found


def done(command: str, programs: Path, folder: Path) -> str:
    ran = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=outside(programs),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert ran.returncode == 0, f"$ {command}\n{ran.stdout}"
    return ran.stdout


def test_it_is_one_package_with_every_file(wheel):
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
    assert {name.split("/")[0] for name in names} == {"perennial", f"{wheel.stem[:18]}.dist-info"}
    for folder in (*PACKAGES, *DATA):
        own = files_of(ROOT / folder)
        inside = own if folder == "perennial" else {f"perennial/{name}" for name in own}
        assert inside <= names, inside - names


def test_first_commands_work_where_others_are_called_as_our_packages(programs, tmp_path):
    for name in ("trainer", "launch", "monitoring", "untrusted", "data_shards"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not this one')\n")
    for command in FIRST:
        done(command, programs, tmp_path)
    version, file = done(f"python -c '{EVERY_MODULE}'", programs, tmp_path).split()[-2:]
    assert version in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert Path(file).is_relative_to(programs.parent)
    assert (tmp_path / "runs" / "demo" / "report.html").exists()


def test_the_notebook_goes_from_photographs_to_a_service(programs, tmp_path):
    told = done(f"python {notebook.__file__} {NOTEBOOK}", programs, tmp_path)
    assert re.search(r"^\d\.\d{3}  thing-07  thing-07/", told, re.M), told
    assert "the same vectors without perennial" in told
    for step in ("init photos", "run photos.yaml", "report runs/photos", "export runs/photos:fkd"):
        assert re.search(rf"^\d+\.\d s: perennial {step}", told, re.M), told


def sources():
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path, path.read_text(encoding="utf-8")


def test_no_module_is_named_in_a_string():
    """In a wheel it has another name: say it by `__name__` or `__module__`."""
    module = re.compile(r"(data_shards|launch|monitoring|trainer|untrusted)(\.[a-z_]\w*)+")
    for path, source in sources():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                named = module.fullmatch(node.value)
                assert not (named and _is_module(named[0])), f"{path}:{node.lineno}"


def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").exists()


def test_imports_alone_are_written_anew():
    spec = importlib.util.spec_from_file_location("built", ROOT / "setup.py")
    built = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(built)
    given = (
        '"""From launch.x import y, and\nfrom launch.x import y."""\n'
        "from launch import (\n    cli,\n)\n"
        "import trainers\n"
        "é = 1; from trainer.model import Model\n"
        "def f():\n    from untrusted.text import printable as p\n    launch = 'launch'\n"
        "from .launch import z\n"
    )
    expected = given.replace("\nfrom launch import (", "\nfrom perennial.launch import (")
    expected = expected.replace("from trainer.", "from perennial.trainer.")
    expected = expected.replace("from untrusted.", "from perennial.untrusted.")
    assert built.within(given) == expected
    with pytest.raises(ValueError, match=r"line 2: write it as `from PACKAGE import NAME`"):
        built.within("x = 1\nimport trainer.model\n")
    for _, source in sources():
        built.within(source)
