"""Charts as SVG: no font, script or file beside them, colours that follow the page's, equal bytes for equal figures.

Matplotlib draws them. Text stays text, in the colour of its surroundings (`currentColor`), so that a chart reads on a
light page and on a dark one. A drawn thing that stands for named figures carries its name as the id of its group.
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.rcsetup import cycler
from matplotlib.ticker import LogLocator, MaxNLocator, StrMethodFormatter
from numpy.typing import NDArray

from tfrec.comparison import Measured

COLOURS = ("#3b7dd8", "#e07b39", "#4a9d5b", "#b657a8", "#c9a227", "#7a6ff0", "#d1495b", "#4fa3a5")  # on light and dark
_INK, _FAINT = "#010203", "#040506"  # stand for the page's colours until the SVG is written
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tfrec",
    "font.family": ["sans-serif"],
    "font.size": 9,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "grid.color": _FAINT,
    **{f"{name}.color": _INK for name in ("text", "xtick", "ytick")},
    **{f"axes.{name}": _INK for name in ("edgecolor", "labelcolor", "titlecolor")},
}
_ALONE = """<style>svg{font-family:sans-serif;color:#1c2128;background:#fff;--faint:#d8dee4}
@media (prefers-color-scheme:dark){svg{color:#dbe1e8;background:#16191d;--faint:#363c44}}</style>"""

_COLUMNS = 3
_COUNTED = ("epoch", "number")
_GREY = "#9aa4af"
_FEW = 30  # points that are marked one by one

Array = NDArray[Any]


Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]
"""Name -> places along the x axis and values, to be drawn as a line."""


def write_chart(path: Path, svg: str) -> None:
    """Writes a chart as a file of its own, which brings the colours that a page would give it."""
    head, close, rest = svg.partition(">")
    path.write_text(f'{head} xmlns="http://www.w3.org/2000/svg"{close}{_ALONE}{rest}\n', encoding="utf-8")


def interval_chart(found: Sequence[Measured]) -> str:
    """Each metric of each run as a point with its 95 % interval, a panel a metric."""
    metrics = list(dict.fromkeys(metric for one in found for metric in one.metrics))
    with _panels(len(metrics), height=0.9 + 0.28 * len(found), sharey=True) as (panels, drawn):
        for panel, metric in zip(panels, metrics, strict=True):
            _intervals(panel, metric, found)
    return drawn[0]


def line_charts(
    charts: Mapping[str, Series],
    *,
    x: str,
    marked: Mapping[str, float] | None = None,
    logarithmic: Literal["", "y", "xy"] = "",
) -> str:
    """A panel a title, in each a line a name, alike in colour over all panels.

    Args:
        charts: title -> lines.
        x: what the x axes show.
        marked: name -> place on the x axis at which that line is marked.
        logarithmic: which axes are, along x by powers of two; what they show must be positive.
    """
    names = list(dict.fromkeys(name for lines in charts.values() for name in lines))
    with _panels(len(charts), height=2.5) as (panels, drawn):
        for panel, (title, lines) in zip(panels, charts.items(), strict=True):
            panel.set(title=_plain(title), xlabel=x)
            if "x" in logarithmic:
                panel.set_xscale("log", base=2)
                panel.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
            else:
                panel.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=x in _COUNTED))
            if "y" in logarithmic:
                panel.set_yscale("log")
                for formats in (panel.yaxis.set_major_formatter, panel.yaxis.set_minor_formatter):
                    formats(StrMethodFormatter("{x:,g}"))
                panel.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
            for name, (places, values) in lines.items():
                colour = _colour(names.index(name))
                style = "o-" if len(places) < _FEW else "-"
                (line,) = panel.plot(places, values, style, markersize=3, color=colour, label=_plain(name))
                line.set_gid(f"line/{title}/{name}".replace(" ", "_"))
                if marked and name in marked:
                    panel.axvline(marked[name], color=colour, linestyle=":", linewidth=1)
        if len(names) > 1:
            _legend(panels)
    return drawn[0]


def slice_chart(groups: Mapping[str, Mapping[str, float]], metric: str) -> str:
    """A metric in each slice as bars, a panel a group of slices."""
    longest = max(len(values) for values in groups.values())
    with _panels(len(groups), height=0.9 + 0.24 * longest) as (panels, drawn):
        for panel, (title, values) in zip(panels, groups.items(), strict=True):
            panel.set(title=_plain(title), xlabel=metric)
            for bar, name in zip(panel.barh(range(len(values)), list(values.values())), values, strict=True):
                bar.set_gid(f"bar/{title}/{name}".replace(" ", "_"))
            panel.set_yticks(range(len(values)), [_plain(name) for name in values])
            panel.invert_yaxis()
            panel.grid(visible=False, axis="y")
    return drawn[0]


def calibration_chart(curves: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Predicted against observed probability, a panel a label; on the dotted diagonal both are equal."""
    with _panels(len(curves), height=3.2) as (panels, drawn):
        for panel, (label, points) in zip(panels, curves.items(), strict=True):
            predicted, observed = np.array(points).T
            largest = float(max(predicted.max(), observed.max())) * 1.05 or 1.0
            panel.plot([0, largest], [0, largest], ":", color=_INK, linewidth=1)
            (line,) = panel.plot(predicted, observed, "o-", markersize=4)
            line.set_gid(f"calibration/{label}".replace(" ", "_"))
            panel.set(title=_plain(label), xlabel="predicted", ylabel="observed", aspect="equal")
    return drawn[0]


def map_chart(maps: Mapping[str, Array], groups: Sequence[str], group: Array) -> str:
    """Items as points in two dimensions, a panel a state, coloured by group; drawn as pixels inside the SVG.

    Args:
        maps: title -> `(N, 2)`.
        groups: names of the groups, the last of them faint.
        group: `(N,)` int. The group of each item.
    """
    size = float(np.clip(8000 / max(len(group), 1), 4, 36))
    with _panels(len(maps), height=3.4) as (panels, drawn):
        for panel, (title, points) in zip(panels, maps.items(), strict=True):
            panel.set(title=_plain(title), xticks=[], yticks=[])
            for place in reversed(range(len(groups))):
                chosen = points[group == place]
                colour = _colour(place) if place < len(groups) - 1 else _GREY
                panel.scatter(chosen[:, 0], chosen[:, 1], size, [colour], linewidth=0, alpha=0.75, rasterized=True)
            for place, name in enumerate(groups):
                panel.scatter([], [], 14, [_colour(place) if place < len(groups) - 1 else _GREY], label=_plain(name))
        _legend(panels)
    return drawn[0]


def mask_chart(mask: Array, rows: Sequence[str], columns: Sequence[str]) -> str:
    """How much of each event each candidate may attend to, from 0 to 1: darker is more.

    Args:
        mask: `(C, L)` float.
        rows: names of the candidates.
        columns: names of the events.
    """
    with _panels(1, width=1.6 + 0.26 * len(columns), height=1.6 + 0.26 * len(rows)) as ((panel,), drawn):
        for row, values in enumerate(mask):
            for column, value in enumerate(values):
                box = Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, color=COLOURS[0], alpha=float(value))
                box.set_gid(f"mask/{row}/{column}")
                panel.add_patch(box)
        panel.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
        panel.set_yticks(range(len(rows)), [_plain(name) for name in rows])
        panel.set_xticks(range(len(columns)), [_plain(name) for name in columns], rotation=90)
        panel.grid(visible=False)
    return drawn[0]


def _intervals(panel: Axes, metric: str, found: Sequence[Measured]) -> None:
    panel.set_title(metric)
    panel.set_yticks(range(len(found)), [_plain(one.name) for one in found])
    panel.set_ylim(len(found) - 0.5, -0.5)
    for place, one in enumerate(found):
        if metric in one.metrics:
            colour = _colour(place)
            (line,) = panel.plot(one.intervals[metric], [place, place], color=colour, linewidth=2)
            line.set_gid(f"interval/{metric}/{place}")
            (point,) = panel.plot([one.metrics[metric]], [place], "o", color=colour)
            point.set_gid(f"point/{metric}/{place}")


@contextmanager
def _panels(
    count: int, *, width: float = 3.7, height: float = 3.0, sharey: bool = False
) -> Iterator[tuple[list[Axes], list[str]]]:
    """Panels, three a line; the SVG is appended to the list that comes with them when the block ends."""
    columns = min(count, _COLUMNS)
    lines = -(-count // columns)
    drawn: list[str] = []
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width * columns, height * lines), layout="constrained")
        panels = list(figure.subplots(lines, columns, squeeze=False, sharey=sharey).ravel())
        yield panels[:count], drawn
        for panel in panels[count:]:
            panel.set_visible(False)
        drawn.append(_svg(figure))


def _legend(panels: Sequence[Axes]) -> None:
    """One legend below all panels."""
    found = {
        label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    columns = 2 * min(len(panels), _COLUMNS)
    panels[0].figure.legend(found.values(), found.keys(), loc="outside lower left", ncols=columns)


def _colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]


def _plain(text: str) -> str:
    """A text in which no dollar sign begins a formula."""
    return text.replace("$", r"\$")


def _svg(figure: Figure) -> str:
    """The figure as an SVG element without prolog and metadata."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, dpi=150, metadata={"Date": None})
    text = file.getvalue()
    text = re.sub(r"<(metadata|style)\b.*?</\1>\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' xmlns(?::\w+)?="[^"]*"| version="1.1"', "", text.strip(), count=3)
    text = re.sub(r'<g id="[\w.]+_\d+"(/?)>', r"<g\1>", text).replace("xlink:href", "href")
    text = re.sub(r" font-family: [^;\"]*;", "", text)
    text = re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", text).replace(" \n", " ")
    text = text.replace("<svg", '<svg style="stroke-linejoin: round; stroke-linecap: butt"', 1)
    return text.replace(_INK, "currentColor").replace(_FAINT, "var(--faint, #d8dee4)")


__all__ = [
    "COLOURS",
    "Series",
    "calibration_chart",
    "interval_chart",
    "line_charts",
    "map_chart",
    "mask_chart",
    "slice_chart",
    "write_chart",
]
