"""Embedders that other products made, as programs: TorchScript, `torch.export` and ONNX.

A program is code: adopt only what you would run. What can be ruled out by looking is ruled out
before anything is loaded: pickled objects, compiled libraries, operators that touch files, and
expressions beyond arithmetic. torch.export's own loader (2.11) would run all of these.
"""

import io
import json
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import torch

from data_shards.settings import InputError

Kind = Literal["torchscript", "exported", "onnx"]
Program = Callable[[torch.Tensor], torch.Tensor]
"""Pixels [b, 3, H, W] float32, as the model expects them, to its output [b, ...]."""

_SCRIPT_FILES = re.compile(rb"\b(torch|aten)\s*\.\s*(save|from_file)\b")
_KEPT = re.compile(
    r"archive_(format|version)|byteorder|\.data/\w+|models/[^/]+\.json"
    r"|data/(weights|constants)/([^/]+_config\.json|(weight|tensor)_\d+)"
)
_SAMPLES = re.compile(r"data/sample_inputs/[^/]+\.pt")
_DROPPED = re.compile(rf"extra/.*|{_SAMPLES.pattern}")
_TARGET = re.compile(
    r"torch\.ops\.(aten|prims|torchvision)\.(?!from_file\b|save\b)\w+(\.\w+)?"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|pow|neg|eq|ne|lt|le|gt|ge|and_|or_)"
    r"|torch\.sym_\w+|math\.(trunc|ceil|floor)"
)
_EXPRESSION = re.compile(
    r"(\b[suzf]\d+\b|\b(Max|Min|Mod|FloorDiv|CeilDiv|Integer)\b|[\d\s+*/(),.<>=-]"
    r"|Symbol\('[suzf]\d+'(, (positive|integer|nonnegative)=(True|False))*\))*",
    re.ASCII,
)


def load_program(kind: Kind, content: bytes, name: str) -> Program:
    """The program in `content`, on the CPU. Raises InputError naming `name` and the remedy."""
    import torchvision  # noqa: F401 registers its operators, which a program may call

    loaders = {"torchscript": _script, "exported": _exported, "onnx": _onnx}
    try:
        return loaders[kind](content, name)
    except InputError:
        raise
    except (ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{name} is damaged, or no such archive: export it anew") from error


def _unsafe(name: str, why: str) -> InputError:
    return InputError(f"{name} is refused: {why}; export the bare network anew, or give it as ONNX")


def _script(content: bytes, name: str) -> Program:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = [entry.partition("/")[2] for entry in archive.namelist()]
        if "constants.pkl" not in names:
            raise InputError(
                f"{name} is a pickled file, not TorchScript: save the network's state_dict with "
                "safetensors and give --architecture, or save torch.jit.script(network)"
            )
        for entry in archive.namelist():
            if entry.endswith(".py") and (found := _SCRIPT_FILES.search(archive.read(entry))):
                raise _unsafe(name, f"it calls {found[0].decode()}")
    with warnings.catch_warnings(action="ignore"):  # TorchScript is deprecated, but in use
        try:
            return torch.jit.load(io.BytesIO(content), map_location="cpu").eval().__call__
        except RuntimeError as error:
            raise InputError(f"{name} cannot be read: {first_line(error)}") from error


def _exported(content: bytes, name: str) -> Program:
    harmless = _harmless(content, name)
    try:
        with warnings.catch_warnings(action="ignore"):
            # guards would be Python source, made of names in the file
            return torch.export.load(io.BytesIO(harmless)).module(check_guards=False).__call__
    except Exception as error:  # the loader raises whatever it runs into
        raise InputError(f"{name} cannot be read: {first_line(error)}") from error


def _harmless(content: bytes, name: str) -> bytes:
    """The archive without pickled example inputs and extra files. Raises InputError for anything
    else that torch.export's loader would unpickle, link or evaluate.

    It is written anew, so that the loader's reader cannot see other entries than were looked at.
    """
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(out, "w") as kept:
        inner = [entry.partition("/")[2] for entry in source.namelist()]
        if not any(path.startswith("models/") for path in inner) or len(set(inner)) < len(inner):
            raise InputError(
                f"{name} is no archive of torch.export: save it with torch 2.9 or later"
            )
        for path, entry in zip(inner, source.namelist(), strict=True):
            held = b"" if _SAMPLES.fullmatch(path) else source.read(entry)
            if path.endswith(".json") and _KEPT.fullmatch(path):
                _vet_json(json.loads(held), name)
            elif not (_KEPT.fullmatch(path) or _DROPPED.fullmatch(path)):
                raise _unsafe(name, f"its {path} may be code or pickled objects")
            if not path.startswith("extra/"):
                kept.writestr(f"archive/{path}", held)
    return out.getvalue()


def _vet_json(value: Any, name: str) -> None:
    for key, inner in _walk(value):
        if key == "use_pickle" and inner is not False:
            raise _unsafe(name, "some of its tensors are pickled")
        if (
            key in ("target", "as_operator")
            and isinstance(inner, str)
            and not _TARGET.fullmatch(inner)
        ):
            raise _unsafe(name, f"it calls {inner}")
        if key == "expr_str" and not _EXPRESSION.fullmatch(str(inner)):
            raise _unsafe(name, f"its expression {inner!r} is not plain arithmetic")


def _walk(value: Any) -> Iterator[tuple[str, Any]]:
    """Every (key, value) of nested JSON."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, inner
            yield from _walk(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _walk(inner)


def _onnx(content: bytes, name: str) -> Program:
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(f"{name} needs onnxruntime: pip install 'perennial-id[onnx]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime has an exception for each of its states
        raise InputError(
            f"{name} cannot be read: {first_line(error)}; weights must be in the same file"
        ) from error
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or len(outputs) != 1 or inputs[0].type != "tensor(float)":
        raise InputError(
            f"{name} has {len(inputs)} inputs and {len(outputs)} outputs, the first input a "
            f"{inputs[0].type}: export one with float images in and one vector each out"
        )

    def run(pixels: torch.Tensor) -> torch.Tensor:
        given = {inputs[0].name: np.ascontiguousarray(pixels.numpy())}
        return torch.from_numpy(session.run(None, given)[0])

    return run


def first_line(error: Exception) -> str:
    """The first line of an exception's words."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
