"""What both explorers are made of: sliders, and how a picture and a line are shown."""

import html
from typing import Any

from folovllm_lite import viz
from folovllm_lite.sampling_params import SamplingParams

TOP_K = (*range(1, 11), 12, 15, 20, 30, 50, 100)  # where the slider can stand


def wide() -> dict:
    """The look of a dial: a column for the names, and as wide as the picture."""
    from ipywidgets import Layout

    return {
        "style": {"description_width": "20em"},
        "layout": Layout(width="100%", max_width="760px"),
    }


def sliders_of(start: SamplingParams) -> list:
    """Dials for temperature, min_p, top_k and top_p, in this order."""
    import ipywidgets as w

    known = {*TOP_K, start.top_k} - {-1}
    return [
        w.FloatSlider(
            value=start.temperature, min=0, max=max(3, start.temperature), step=0.1,
            readout_format=".1f",
            description="Divide the logits by (temperature)", **wide(),
        ),
        w.FloatSlider(
            value=start.min_p, min=0, max=1, step=0.01, readout_format=".2f",
            description="Cut below this × the likeliest (min_p)", **wide(),
        ),
        w.SelectionSlider(
            options=[*((str(k), k) for k in sorted(known)), ("all", -1)],
            value=start.top_k,
            description="Keep the k likeliest tokens (top_k)", **wide(),
        ),
        w.FloatSlider(
            value=start.top_p, min=min(0.01, start.top_p), max=1, step=0.01,
            readout_format=".2f",
            description="Keep likeliest up to this sum (top_p)", **wide(),
        ),
    ]  # fmt: skip


def read_dials(dials: Any) -> dict:
    """What the sliders say, without the dust of steps of 0.01."""
    return {
        "temperature": round(dials.temperature.value, 3),
        "min_p": round(dials.min_p.value, 3),
        "top_k": dials.top_k.value,
        "top_p": round(dials.top_p.value, 3),
    }


def framed(picture: viz.Picture) -> str:
    """A picture as HTML; screen readers read its text."""
    text = html.escape(picture.text, quote=True)
    # In a narrow window the picture shrinks instead of being cut off.
    svg = picture.svg.replace("<svg ", '<svg style="max-width:100%;height:auto" ', 1)
    return f'<div role="img" aria-label="{text}">{svg}</div>'


def spoken(status: str) -> str:
    """A line as HTML that screen readers read when it changes."""
    return f'<p aria-live="polite" style="margin:4px 0">{html.escape(status)}</p>'
