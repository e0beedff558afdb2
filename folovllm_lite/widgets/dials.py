"""What both explorers are made of: sliders, and how a picture and a line are shown."""

import html
from typing import Any

from folovllm_lite import viz
from folovllm_lite.sampling_params import SamplingParams
from folovllm_lite.viz.picture import visible

# What ipywidgets has no setting for. While a cell runs, no kernel can say that dials
# have to wait: JupyterLab's page knows, in its toolbar; other pages get a sentence.
# A dial keeps the kernel busy too, for a moment: hence the second before it is said.
_STYLE = """<style>
.folo-explorer .widget-inline-hbox .widget-label{text-align:left}
.folo-explorer .widget-html-content{line-height:1.35}
.folo-explorer select{min-height:28px}
.folo-waits{min-height:2.7em}
.folo-busy,
.jp-NotebookPanel:has(.jp-Notebook-ExecutionIndicator) .folo-always{display:none}
.jp-NotebookPanel:has(.jp-Notebook-ExecutionIndicator[data-status="busy"]) .folo-busy
{display:block;font-weight:bold;animation:folo-late 1s}
@keyframes folo-late{from,99%{opacity:0}to{opacity:1}}
</style>"""
_WAITS = """<div class="folo-waits">
<div class="folo-always">Dials and buttons answer when no cell is running.</div>
<div class="folo-busy">A cell is running: dials and buttons wait for it.</div>
</div>"""
TOP_K = (*range(1, 11), 12, 15, 20, 30, 50, 100)  # where the slider can stand


def wide() -> dict:
    """The look of a dial: a column for the names, and as wide as the picture."""
    from ipywidgets import Layout

    return {
        "style": {"description_width": "20em"},
        "layout": Layout(width="100%", max_width="760px"),
    }


def narrow() -> dict:
    """The look of a dial in the column beside a picture: its name stands above it."""
    from ipywidgets import Layout

    return {
        "style": {"description_width": "100%"},
        "layout": Layout(width="100%", height="auto", flex_flow="row wrap", margin="0"),
    }


def grid(buttons: list, rows: int = 0) -> Any:
    """Buttons in two columns; room for `rows` is kept, so that nothing moves."""
    import ipywidgets as w

    for button in buttons:
        button.layout.width = "auto"
    height = f"{34 * rows}px" if rows else None
    return w.Box(
        buttons,
        layout=w.Layout(
            display="grid",
            grid_template_columns="1fr 1fr",
            grid_auto_rows="34px",
            min_height=height,
            flex="0 0 auto",
        ),
    )


def beside(controls: list, picture: Any) -> Any:
    """Controls in a column, and the picture beside it, in a narrow window below."""
    import ipywidgets as w

    column = w.VBox([*controls, w.HTML(_WAITS)], layout=w.Layout(flex="0 0 270px"))
    room = w.Box([picture], layout=w.Layout(flex="1 1 480px", min_width="0"))
    picture.layout.width = "100%"
    style = w.HTML(_STYLE)
    box = w.Box(
        [style, column, room],
        layout=w.Layout(display="flex", flex_flow="row wrap", align_items="flex-start"),
    )
    box.add_class("folo-explorer")
    return box


def sliders_of(start: SamplingParams) -> list:
    """Dials for temperature, min_p, top_k and top_p, in this order."""
    import ipywidgets as w

    known = {*TOP_K, start.top_k} - {-1}
    return [
        w.FloatSlider(
            value=start.temperature, min=0, max=max(3, start.temperature), step=0.1,
            readout_format=".1f",
            description="Divide the logits by (temperature)", **narrow(),
        ),
        w.FloatSlider(
            value=start.min_p, min=0, max=1, step=0.01, readout_format=".2f",
            description="Cut below this × the likeliest (min_p)", **narrow(),
        ),
        w.SelectionSlider(
            options=[*((str(k), k) for k in sorted(known)), ("all", -1)],
            value=start.top_k,
            description="Keep the k likeliest tokens (top_k)", **narrow(),
        ),
        w.FloatSlider(
            value=start.top_p, min=min(0.01, start.top_p), max=1, step=0.01,
            readout_format=".2f",
            description="Keep likeliest up to this sum (top_p)", **narrow(),
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
    look = "margin:4px 0;min-height:4em"  # room for three lines: nothing moves
    return f'<p aria-live="polite" style="{look}">{html.escape(visible(status))}</p>'
