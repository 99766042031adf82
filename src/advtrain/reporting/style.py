"""How every figure looks: white, sparse, readable without colour vision and in print."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from advtrain.files import write_bytes

# Okabe and Ito's colours (https://jfly.uni-koeln.de/color/), told apart by all; in this order.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444", "#8C6D31")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
INK, FAINT = "#222222", "#DDDDDD"

SETTINGS: Any = {
    "font.size": 9.5,
    "font.family": "DejaVu Sans",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.edgecolor": "#888888",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.dpi": 100,
    "savefig.dpi": 160,
    "text.parse_math": False,  # names of classes and runs are text
}


@contextmanager
def figure(width: float, height: float, rows: int = 1, columns: int = 1) -> Iterator[Any]:
    """Yields (figure, axes) in inches, drawn by Agg without touching pyplot's global state."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(SETTINGS):
        drawing = Figure(figsize=(width, height), layout="constrained", facecolor="white")
        FigureCanvasAgg(drawing)
        yield drawing, drawing.subplots(rows, columns, squeeze=False)


def save(drawing: Any, path: Path) -> Path:
    """Write the figure as PNG, atomically; the same figure gives the same bytes."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a box for a sign that the font lacks will do
        drawing.savefig(content, format="png", metadata={"Software": None})
    write_bytes(path, content.getvalue())
    return path


def percent_axis(axis: Any) -> None:
    """Label the ticks of an axis that holds fractions in percent."""
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))


def footnote(drawing: Any, text: str) -> None:
    """A small grey line under the axes."""
    drawing.supxlabel(text, x=0.01, ha="left", fontsize=8, color="#666666")
