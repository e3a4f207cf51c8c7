"""What a caller wants of a model -> what every layer gets: a Setting, or the reason why it is left alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from convein.errors import ConveinError, OptionError
from convein.layers import FORMS, from_conv, from_linear
from convein.layers.dense import checked_seed
from convein.layers.factorised import Factorised, Rank
from convein.layers.forms import misfit
from convein.layers.misfits import OF_THE_PLAN, unknown_option
from convein.layers.pretrained import weight_of
from convein.options import of_python, shown
from convein.tensorizing.sites import Site

AUTO = "auto"
# Words in `skip` that are places.
WORDS = ("first", "last")
_OF_THE_FORM = ("form", "rank", "factors", "multiple", "seed")
# The other arguments of tensorize, which may be misspelt, too.
_OF_THE_CALL = ("example_inputs", "skip", "overrides", "decompose", "inplace", "dry_run", "spec")


@dataclass(frozen=True, slots=True)
class Setting:
    """How one layer is factorised; the attributes are those of `convein.layers.from_conv`."""

    form: str = "cp"
    rank: Rank = 0.1
    factors: int = 3
    multiple: int | None = None
    seed: int = 0
    planning: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rank", of_python(self.rank))
        object.__setattr__(self, "seed", checked_seed(self.seed))
        if self.form not in (*FORMS, AUTO):
            close = get_close_matches(str(self.form).lower(), [*FORMS, AUTO], 1)
            raise OptionError(
                f"form={self.form!r}",
                hint=f"did you mean {close[0]!r}?" if close else f"a form is one of {', '.join([*FORMS, AUTO])}",
            )

    def changed(self, given: Mapping[str, Any]) -> Setting:
        """The same with some values replaced.

        Raises:
            OptionError: there is no such value.
        """
        for name in given:
            if name not in (*_OF_THE_FORM, *OF_THE_PLAN):
                raise unknown_option("tensorize", str(name), given[name], _OF_THE_FORM, _OF_THE_CALL)
        planning = {name: value for name, value in given.items() if name in OF_THE_PLAN}
        form: dict[str, Any] = {name: value for name, value in given.items() if name in _OF_THE_FORM}
        return replace(self, **form, planning={**self.planning, **planning})

    def obstacle(self, site: Site) -> str | None:
        """Why a layer cannot have this form."""
        error = misfit(self.form, weight_of(site.layer))
        return None if error is None else error.message

    def made(self, site: Site, *, decompose: bool, draw: bool = True) -> Factorised:
        """The factorised layer; with `draw` and `decompose` False, its weights have no values.

        Raises:
            OptionError: the layer cannot have this form, which is said with its name.
        """
        options = dict(self.planning) if draw or decompose else {**self.planning, "init": None}
        make = from_linear if isinstance(site.layer, nn.Linear) else from_conv
        if decompose and any(tensor.is_meta for tensor in site.layer.parameters()):
            raise OptionError(
                f"layer {site.name} is on the meta device: there is nothing to decompose", hint="decompose=False"
            )
        try:
            return make(
                site.layer, self.form, self.rank, factors=self.factors, multiple=self.multiple, seed=self.seed,
                decompose=decompose, **options,
            )  # fmt: skip
        except ConveinError as error:
            raise OptionError(f"layer {site.name or 'itself'}: {error.message}", hint=error.hint) from error


Choice = Setting | str


def choose(
    sites: Sequence[Site], base: Setting, skip: Sequence[str] | str | None, overrides: Mapping[str, Any] | None
) -> dict[Site, Choice]:
    """What every layer gets, or why it is left alone.

    A pattern is that of fnmatch; one that matches a module goes for everything in it. Overrides refine each other in
    their order. What "first" and "last" skip is replaced all the same if an override has its name.

    Args:
        sites: in the order that "first" and "last" mean.
        base: for all layers.
        skip: patterns and words; None is none of them.
        overrides: from a pattern to the values of a Setting, or None.

    Raises:
        OptionError: a pattern that matches no layer, or no such value.
    """
    words = (skip,) if isinstance(skip, str) else tuple(skip or ())
    special = dict(overrides or {})
    for what, pattern in [
        *(("skip", word) for word in words if word not in WORDS),
        *(("overrides", p) for p in special),
    ]:
        if not isinstance(pattern, str) or not any(_matches(pattern, site) for site in sites):
            raise _no_match(what, pattern, sites)
    for pattern, given in special.items():
        if given is not None and not isinstance(given, Mapping):
            raise OptionError(
                f"overrides of {shown(pattern)} is {shown(given)}",
                hint='a dict, as {"rank": 0.2}, or None for layers that are left alone',
            )
    free = [site for site in sites if site.reason is None]
    ends = {word: free[0 if word == "first" else -1] for word in WORDS if word in words and free}
    return {site: site.reason or _choice(site, base, words, ends, special) for site in sites}


def _choice(
    site: Site, base: Setting, words: Iterable[str], ends: Mapping[str, Site], special: Mapping[str, Any]
) -> Choice:
    for word in words:
        if word not in WORDS and _matches(word, site):
            return f"skipped: {word}"
    for word, end in ends.items():
        if site is end and not any(special.get(name) for name in site.names):
            return f"skipped: {word}"
    setting, left = base, None
    for pattern, given in special.items():
        if _matches(pattern, site):
            left = f"overridden: {pattern}" if given is None else None
            setting = setting.changed(given or {})
    return left or setting


def _matches(pattern: str, site: Site) -> bool:
    return any(fnmatchcase(above, pattern) for name in site.names for above in _path(name))


def _path(name: str) -> list[str]:
    """A qualified name and those of the modules that it is in."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _no_match(what: str, pattern: object, sites: Sequence[Site]) -> OptionError:
    known = dict.fromkeys(above for site in sites for name in site.names for above in _path(name))
    close = get_close_matches(str(pattern), [*known, *(WORDS if what == "skip" else ())], 3)
    some = ", ".join(list(known)[:5])
    return OptionError(
        f"{what}: {shown(pattern)} matches no convolution or linear layer",
        hint=f"did you mean {' or '.join(map(shown, close))}?"
        if close
        else f"there are {some}{', ...' * (len(known) > 5)}",
    )


def from_spec(sites: Sequence[Site], spec: Mapping[str, Any]) -> dict[Site, Choice]:
    """What every layer gets by the spec of a report.

    Raises:
        OptionError: this is no spec, or one of another model.
    """
    layers = spec.get("layers") if isinstance(spec, Mapping) else None
    if not isinstance(layers, Mapping) or not all(isinstance(entry, Mapping) for entry in layers.values()):
        raise OptionError(f"spec={shown(spec)}", hint="a spec is `report.spec`, or what json.loads makes of it")
    rest = dict(layers)
    choices: dict[Site, Choice] = {}
    for site in sites:
        found = [rest.pop(name) for name in site.names if name in rest]
        if found and site.reason:
            raise OptionError(f"spec: layer {site.name} cannot be replaced: {site.reason}")
        choice = choices[site] = _read(found[0]) if found else site.reason or "not in the spec"
        if isinstance(choice, Setting) and (reason := choice.obstacle(site)):
            raise OptionError(f"spec: layer {site.name} cannot be replaced: {reason}")
    for name in rest:
        raise _no_match("spec", name, sites)
    return choices


def written(setting: Setting, ranks: Mapping[str, int]) -> dict[str, Any]:
    """A setting as the spec has it, with the ranks that it came to.

    Raises:
        OptionError: an option that is an object has no JSON.
    """
    options = {}
    for name, value in setting.planning.items():
        if isinstance(value, torch.dtype):
            value = str(value).removeprefix("torch.")
        if not _is_json(value):
            raise OptionError(f"{name}={shown(value)} cannot be written to a spec", hint="strings and numbers can")
        options[name] = value
    return {"form": setting.form, "factors": setting.factors, "rank": list(ranks.values()), "options": options}


def _is_json(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_json, value))
    return value is None or isinstance(value, (str, bool, int, float))


def _read(entry: Mapping[str, Any]) -> Setting:
    options = dict(entry.get("options", {}))
    if isinstance(options.get("accumulate"), str):
        options["accumulate"] = getattr(torch, options["accumulate"])
    given = {**entry, "rank": tuple(entry.get("rank", ())), **options}
    given.pop("options", None)
    return Setting().changed(given)
