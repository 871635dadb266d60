"""Converts a PyTorch program (TorchScript, torch.export) to an ONNX graph, in a separate process.

Loading such a file runs it: torch.export's loader makes Python source of names in it, and
TorchScript may read and write files. So that happens once, when a user adopts a file that they
trust, in a process without the environment's secrets; its output is read like any untrusted file.
This is no sandbox: the process has the user's rights.
"""

import os
import signal
import subprocess
import sys
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from data_shards.settings import InputError
from trainer.onnx_graphs import first_line, load_graph
from untrusted.files import read_bytes
from untrusted.text import printable

Kind = Literal["torchscript", "exported"]
_SECONDS = 1200
_BYTES = (1 << 31) - 1
"""The largest file that protobuf reads."""
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
_KEPT = ("PATH", "LD_LIBRARY_PATH", "LANG", "OMP_NUM_THREADS", "OMP_WAIT_POLICY")
_ALIKE = 1e-3
"""Of a vector's length: other kernels round differently, and wrong weights are off by more."""
_REMEDY = "export it yourself by torch.onnx.export and adopt the .onnx file"


def converted(kind: Kind, file: Path, size: tuple[int, int]) -> bytes:
    """The ONNX graph of the program in `file`, compared with it on random images [n, 3, *size].

    Raises InputError when the program cannot be run or converted, or the graph's vectors differ.
    """
    root = Path(__file__).parents[__name__.count(".")]
    with tempfile.TemporaryDirectory(prefix="perennial-") as made:
        # a new environment, as this process's may hold credentials
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        own = {"HOME": made, "TMPDIR": made, "PYTHONPATH": str(root), "PYTHONUTF8": "1"}
        command = [sys.executable, "-m", __name__, kind, str(file.absolute())]
        process = subprocess.Popen(
            [*command, *map(str, size)],
            cwd=made,
            env=kept | own,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            code = process.wait(_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise InputError(f"{file} was not converted within {_SECONDS} s: {_REMEDY}") from error
        finally:
            with suppress(ProcessLookupError):  # the group: also processes that the program started
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        folder = Path(made)
        if (folder / "error").exists():
            why = read_bytes(folder / "error", 1 << 16, folder).decode(errors="replace")
            raise InputError(f"{file} {printable(why)}")
        if code:
            raise InputError(f"{file} ended its process ({code}): {_REMEDY}")
        graph = read_bytes(folder / "graph.onnx", _BYTES, folder)
        pixels, vectors = (
            torch.from_numpy(np.load(folder / f"{name}.npy", allow_pickle=False))
            for name in ("pixels", "vectors")
        )
    found = load_graph(graph, str(file))(pixels).flatten(1)
    apart = (found - vectors).norm(dim=1) / vectors.norm(dim=1).clamp_min(1e-12)
    if found.shape != vectors.shape or not apart.max() <= _ALIKE:
        raise InputError(
            f"{file} as ONNX gives other vectors than the program itself (off by "
            f"{float(apart.max()):.1%}), so it may be in training mode: {_REMEDY}"
        )
    return graph


def _load(kind: Kind, file: Path) -> Any:
    import torchvision  # noqa: F401 registers its operators, which a program may call

    if kind == "exported":
        return torch.export.load(file)
    try:
        return torch.jit.load(file, map_location="cpu").eval()
    except RuntimeError as error:
        if "constants.pkl" in str(error):
            raise InputError(
                "is a pickled file, not TorchScript: save the network's state_dict with "
                "safetensors and give --architecture"
            ) from error
        raise


def _tried(program: Any, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """Pixels, the vectors of `program` for them, and whether batches of any size work."""
    failure: Exception | None = None
    # three images first: if two work as well, the batch is not fixed
    for count in (3, *_BATCHES):
        pixels = torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(0))
        try:
            vectors = program(pixels)
            free = count == 3 and len(program(pixels[:2])) == 2
        except Exception as error:  # a stranger's program raises whatever it runs into
            failure = failure or error
            continue
        if not isinstance(vectors, torch.Tensor) or len(vectors) != count:
            raise InputError("does not return one tensor with a vector for each image")
        return pixels, vectors.flatten(1).float(), free
    assert failure is not None
    raise InputError(f"cannot be run on images of {size[0]}x{size[1]}: {first_line(failure)}")


def _write_graph(kind: Kind, program: Any, pixels: torch.Tensor, free: bool) -> None:
    out = Path("graph.onnx")
    # each of torch's two exporters fails on the other's programs
    if kind == "exported":
        torch.onnx.export(program, (pixels,), out, external_data=False, verbose=False)
    else:
        names: dict[str, Any] = {"input_names": ["pixels"], "output_names": ["vectors"]}
        axes = {"pixels": {0: "images"}, "vectors": {0: "images"}} if free else None
        torch.onnx.export(
            program, (pixels,), out, dynamo=False, opset_version=17, dynamic_axes=axes, **names
        )


@torch.inference_mode()
def main(kind: Kind, file: Path, size: tuple[int, int]) -> None:
    """Writes ``graph.onnx``, ``pixels.npy`` and ``vectors.npy`` to the working directory, or the
    reason of a failure to ``error``."""
    warnings.simplefilter("ignore")
    try:
        try:
            program = _load(kind, file)
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"cannot be read: {first_line(error)}") from error
        call = program.module(check_guards=False) if kind == "exported" else program
        pixels, vectors, free = _tried(call, size)
        try:
            _write_graph(kind, program, pixels, free)
        except Exception as error:
            why = first_line(error)
            raise InputError(f"cannot be converted to ONNX ({why}): {_REMEDY}") from error
    except InputError as error:
        Path("error").write_text(str(error), encoding="utf-8")
        return
    np.save("pixels.npy", pixels.numpy())
    np.save("vectors.npy", vectors.numpy())


if __name__ == "__main__":
    named, given, height, width = sys.argv[1:]
    main(
        "exported" if named == "exported" else "torchscript", Path(given), (int(height), int(width))
    )
