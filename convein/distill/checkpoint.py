"""Checkpoints: written so that a kill at any moment leaves a whole one, and read only by the run they are of."""

from __future__ import annotations

import hashlib
import os
import pickle
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import numpy as np
import torch
from torch import Tensor, nn

from convein.errors import OptionError

KIND = "convein.distill 1"
_HINT = "delete the file to start over, or give another path"


def write(path: Path, run: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Replaces the checkpoint in one step: whoever reads the path finds the old one or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        torch.save({"kind": KIND, "run": dict(run), **state}, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read(path: Path, run: Mapping[str, Any]) -> dict[str, Any] | None:
    """The state that was written last; None before the first.

    Raises:
        OptionError: the file is something else, or the checkpoint of another run.
    """
    if not path.exists():
        return None
    try:
        # What is no zip file goes to an old reader of torch, which fails in every possible way.
        state = torch.load(path, map_location="cpu", weights_only=True) if is_zipfile(path) else None
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise OptionError(f"checkpoint={str(path)!r} is a file that torch.load cannot read", hint=_HINT) from error
    if not isinstance(state, dict) or state.get("kind") != KIND:
        raise OptionError(f"checkpoint={str(path)!r} is a file that this version of distill did not write", hint=_HINT)
    for name, asked in run.items():
        stored = state["run"].get(name)
        if stored != asked:
            raise OptionError(
                f"checkpoint={str(path)!r} is of another run: {_difference(name, stored, asked)}", hint=_HINT
            )
    return state


def _difference(name: str, stored: Any, asked: Any) -> str:
    """What two runs differ in; of two tables the first line that differs."""
    if not isinstance(asked, Mapping) or not isinstance(stored, Mapping):
        return f"its {name} is {stored}, and this run's is {asked}"
    line = next(line for line in [*asked, *stored] if stored.get(line) != asked.get(line))
    return f"its {name} has {line}: {stored.get(line, 'nothing')}, and this run's {asked.get(line, 'nothing')}"


def layout(model: nn.Module) -> dict[str, str]:
    """Name, dtype and shape of every tensor of a model, and whether it is trained: its values are the checkpoint's."""
    trained = {name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter.requires_grad}
    return {
        name: f"{tensor.dtype} {tuple(tensor.shape)}{' trained' * (name in trained)}"
        for name, tensor in model.state_dict().items()
        if isinstance(tensor, Tensor)
    }


def digest(model: nn.Module) -> str:
    """A short text that differs for models whose tensors differ in any bit."""
    found = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor):
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def generators(batches: Any) -> list[torch.Generator]:
    """The generators that a data loader, its samplers and its dataset draw from, each once."""
    found: dict[int, torch.Generator] = {}
    for holder in _holders(batches):
        generator = getattr(holder, "generator", None)
        if isinstance(generator, torch.Generator):
            found[id(generator)] = generator
    return list(found.values())


def _holders(batches: Any) -> Iterator[Any]:
    batch_sampler = getattr(batches, "batch_sampler", None)
    yield from (batches, getattr(batches, "sampler", None), batch_sampler)
    yield from (getattr(batch_sampler, "sampler", None), getattr(batches, "dataset", None))


def random_states(batches: Any, device: torch.device) -> dict[str, Any]:
    """Where all random numbers of a run stand: torch's, Python's and numpy's, and those of the batches."""
    kind, key, *rest = np.random.get_state()  # noqa: NPY002 - transforms of other people's datasets draw from it
    states = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": [str(kind), np.asarray(key).tolist(), *rest],
        "batches": [generator.get_state() for generator in generators(batches)],
    }
    return {**states, "cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else states


def restore_random_states(states: Mapping[str, Any], batches: Any, device: torch.device) -> None:
    """Puts all random numbers back to where `random_states` found them."""
    torch.set_rng_state(states["torch"])
    random.setstate(states["python"])
    kind, key, *rest = states["numpy"]
    np.random.set_state((kind, np.array(key, dtype=np.uint32), *rest))  # noqa: NPY002 - as it was saved
    for generator, state in zip(generators(batches), states["batches"]):
        generator.set_state(state)
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
