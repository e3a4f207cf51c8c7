"""A layer and its inputs -> the form that the time model expects to be fastest with few enough parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from convein.errors import OptionError
from convein.metering import Sample
from convein.tensorizing.figures import Forecast
from convein.tensorizing.settings import Setting
from convein.tensorizing.sites import Site

# Forms that have a decomposition and suit convolutions and linear layers alike, with the factors of the reshaped ones.
_FORMS = (
    ("svd", 3),
    ("spatial-svd", 3),
    ("tucker", 3),
    ("cp", 3),
    ("tt", 3),
    ("rcp", 2),
    ("rtt", 2),
    ("rcp", 3),
    ("rtt", 3),
)
# Ranks as they come, and multiples of this: calls with those are faster. They must keep most of the parameters.
_MULTIPLE = 16
_LEAST_KEPT = 0.75
# A layer that is not expected to be this much faster than the dense one is left alone: a model of time is no clock.
MARGIN = 0.9


def fastest(site: Site, asked: Setting, inputs: Sequence[Sample], dense: float, forecast: Forecast) -> Setting | str:
    """The setting with the least expected time, or why the layer is left alone.

    Args:
        site: the layer.
        asked: its rank is the fraction of the dense parameters that the factors may have.
        inputs: of each of its calls.
        dense: microseconds that the dense layer is expected to take.
        forecast: of times.

    Raises:
        OptionError: the rank is no fraction.
    """
    fraction = 1.0 if asked.rank == "same" else asked.rank
    if not isinstance(fraction, float):
        raise OptionError(
            f"layer {site.name}: rank={asked.rank!r} with form='auto'",
            hint="a fraction of the dense parameters, as 0.1: the forms' ranks mean different things",
        )
    best: tuple[float, Setting] | None = None
    seen = set()
    for form, factors in _FORMS:
        least = 0.0
        for multiple in (None, _MULTIPLE) if asked.multiple is None else (asked.multiple,):
            setting = replace(asked, form=form, factors=factors, multiple=multiple)
            layer = setting.made(site, decompose=False, draw=False)
            shape = layer.expression, *layer.ranks.values()
            if layer.rate > fraction or layer.rate < least or shape in seen:
                continue
            seen.add(shape)
            least = _LEAST_KEPT * layer.rate
            time = forecast.time(layer, inputs)
            if best is None or time < best[0]:
                best = time, setting
    if best is None:
        return f"no form has as few as {fraction:g} of its parameters"
    if best[0] > MARGIN * dense:
        what = "be slower" if best[0] > dense else "hardly be faster"
        return f"would {what}: {best[0]:,.0f} us at best ({best[1].form}), {dense:,.0f} us dense"
    return best[1]
