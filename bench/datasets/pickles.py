"""The pickles of CIFAR-10, read without running anything that a pickle asks for."""

from __future__ import annotations

import io
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BYTES = ("u1", b"u1")  # as Python 3 and Python 2 wrote the name of the dtype


class _Dtype:
    """Stands for a dtype: the name is all that is needed, and the state is that of the name."""

    def __init__(self, name: object) -> None:
        self.name = name

    def __setstate__(self, state: object) -> None: ...


class _Array:
    """Stands for an array of bytes while it is read: keeps the state that numpy would be given.

    No code of numpy meets what the file says before `value` has checked it.
    """

    state: tuple[object, ...] = ()

    def __setstate__(self, state: tuple[object, ...]) -> None:
        self.state = state

    def value(self) -> NDArray[np.uint8]:
        """The array; ValueError when the state is not that of an array of bytes."""
        _, shape, dtype, columns_first, data = self.state
        if not isinstance(dtype, _Dtype) or dtype.name not in _BYTES or not isinstance(data, bytes):
            raise ValueError("an array in it is not of bytes")
        if not isinstance(shape, tuple) or not all(isinstance(size, int) and size >= 0 for size in shape):
            raise ValueError(f"an array in it has the shape {shape!r}")
        if math.prod(shape) != len(data):
            raise ValueError(f"an array in it has the shape {shape} and {len(data):,} bytes")
        return np.frombuffer(data, np.uint8).reshape(shape, order="F" if columns_first else "C")


class _Unpickler(pickle.Unpickler):
    """Builds dicts, lists, tuples, texts, bytes and numbers as any pickle does, and of classes only `_Array`."""

    def find_class(self, module: str, name: str) -> Any:
        """A stand-in for what makes an array; everything else is refused."""
        # New with every call, so that a pickle that sets attributes of what it names reaches nothing of ours.
        match module, name:
            case "numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct":
                return lambda *_: _Array()
            case "numpy", "dtype":
                return lambda name, *_: _Dtype(name)
            case "numpy", "ndarray":
                return object()
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no picture needs")


def unpickle(path: Path) -> dict[str, object]:
    """The dict in a file: its keys as texts, arrays of bytes as numpy's, everything else as the pickle has it.

    Texts that Python 2 wrote are bytes.

    Raises:
        ValueError: the file is not a pickle, is cut short, asks for anything but arrays of bytes, or is not of a dict.
    """
    try:
        content = _Unpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__} and not a dict")
        return {_text(key): _value(value) for key, value in content.items()}
    # A damaged pickle is a random program of pickle's machine: what it raises is up to chance.
    except Exception as error:
        raise ValueError(f"{path} is not a batch of CIFAR-10 that Python wrote, or is damaged: {error}") from error


def _text(key: object) -> str:
    return key.decode("latin1") if isinstance(key, bytes) else str(key)


def _value(value: object) -> object:
    return value.value() if isinstance(value, _Array) else value
