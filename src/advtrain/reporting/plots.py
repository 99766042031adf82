"""The figures of one run: training curves, accuracies, adversarial examples."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from advtrain.reporting.records import Run
from advtrain.reporting.series import Examples
from advtrain.reporting.style import COLOURS, INK, figure, footnote, percent_axis, save
from advtrain.reporting.tables import title
from advtrain.reporting.wording import percent, settings

ACCURACIES = {
    "train_acc": ("training", COLOURS[6], ":"),
    "val_acc": ("validation, clean", COLOURS[0], "-"),
    "val_adv_acc": ("validation, attacked", COLOURS[1], "-"),
}
LOSSES = ("loss", "ce", "kl", "penalty", "margin")
MAX_TERMS = 4
MAX_EXAMPLES = 8


def training_curves(metrics: Sequence[dict[str, float]], path: Path) -> Path | None:
    """Losses on the left, accuracies on the right, over the epochs; None without epochs."""
    if not metrics:
        return None
    terms = [key for entry in metrics for key in entry if key not in ("train_loss", *ACCURACIES)]
    terms = [t for t in dict.fromkeys(terms) if any(word in t.split("_") for word in LOSSES)]
    with figure(9.2, 3.3, columns=2) as (drawing, axes):
        left, right = axes[0]
        curve(left, metrics, "train_loss", label="training loss", color=COLOURS[0], zorder=3)
        for term, colour in zip(terms[:MAX_TERMS], COLOURS[2:], strict=False):
            curve(left, metrics, term, label=term, color=colour, linewidth=1.2)
        left.set(title="Loss", xlabel="epoch")
        left.set_ylim(bottom=min(0, left.get_ylim()[0]))
        left.set_ylim(top=left.get_ylim()[1] + 0.05 * (left.get_ylim()[1] - left.get_ylim()[0]))
        for key, (name, colour, style) in ACCURACIES.items():
            curve(right, metrics, key, label=name, color=colour, linestyle=style)
        right.set(title="Accuracy", xlabel="epoch")
        accuracy_limits(right)
        for axes_ in (left, right):
            epoch_axis(axes_)
            if len(axes_.lines) > 1:
                axes_.legend()
        return save(drawing, path)


def curve(axes: Any, metrics: Sequence[dict[str, float]], key: str, **look: Any) -> None:
    """One key over the epochs, with markers while they are few; nothing where it is absent."""
    points = [(entry["epoch"], entry[key]) for entry in metrics if key in entry]
    if points:
        epochs, values = zip(*points, strict=True)
        axes.plot(epochs, values, marker="o" if len(points) <= 15 else None, **look)


def epoch_axis(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def accuracy_limits(axes: Any) -> None:
    """Percent from 0 up to the next tenth over the data, so that no difference looks larger."""
    top = max((max(line.get_ydata(), default=0) for line in axes.lines), default=1)
    axes.set_ylim(0, min(1.02, 0.1 * (int(top * 10) + 1.2)))
    percent_axis(axes.yaxis)


def accuracy_bars(run: Run, path: Path) -> Path | None:
    """A bar per attack with its interval and number; worst cases below; None without rows."""
    bars = [(r.name, r.view, r.accuracy, r.low, r.high, settings(r)) for r in run.rows]
    bars += [(f"worst_{k}", "", v, None, None, "") for k, v in run.worst_case.items()]
    if not bars:
        return None
    views = [view for view in run.views]
    with figure(7.2, 0.9 + 0.36 * len(bars)) as (drawing, grid):
        axes = grid[0][0]
        for place, (name, view, value, low, high, _) in enumerate(bars):
            colour = COLOURS[6] if not view else COLOURS[views.index(view) % 6]
            axes.barh(place, value, height=0.62, color=colour, alpha=1 if name != "clean" else 0.55)
            end = value
            if low is not None and high is not None:
                axes.plot([low, high], [place, place], color=INK, linewidth=1.3)
                axes.plot([low, high], [place, place], "|", color=INK, markersize=7)
                end = high
            axes.text(end + 0.012, place, percent(value, 1), va="center", color=INK)
        several = len(views) > 1
        names = [title(b[0]) + (f"  ({b[1]})" if several and b[1] else "") for b in bars]
        axes.set_yticks(range(len(bars)), names)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.08)
        axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        percent_axis(axes.xaxis)
        axes.set_title("Accuracy by attack")
        sizes = {row.n for row in run.rows}
        note = f"n = {sizes.copy().pop()}" if len(sizes) == 1 else ""
        footnote(drawing, f"{note}{', ' if note else ''}whiskers: exact 95 % interval")
        return save(drawing, path)


def example_grid(examples: Examples, path: Path) -> Path:
    """Clean, adversarial and their difference, enlarged and centred on grey, in columns."""
    import numpy as np

    number = min(len(examples.clean), MAX_EXAMPLES)
    clean, adversarial = examples.clean[:number], examples.adversarial[:number]
    largest = float(np.abs(adversarial - clean).max())
    scale = max(1, int(0.5 / largest)) if largest > 0 else 1
    rows = [clean, np.clip(adversarial, 0, 1), np.clip(0.5 + scale * (adversarial - clean), 0, 1)]
    names = ["clean", "adversarial", f"difference\n{scale} times"]
    right = 0.14 + number
    with figure(1.05 * right + 0.9, 4.3) as (drawing, grid):
        axes = grid[0][0]
        for i, images in enumerate(rows):
            top = 1.28 * i
            axes.text(-0.1, top + 0.5, names[i], ha="right", va="center", color=INK)
            for j in range(number):
                place = (1.06 * j, 1.06 * j + 1, top + 1, top)
                look = {"cmap": "gray", "vmin": 0, "vmax": 1, "interpolation": "nearest"}
                axes.imshow(images[j], extent=place, **look)
        for i, told in enumerate([examples.predicted_clean, examples.predicted_adversarial]):
            for j in range(number):
                hit = told[j] == examples.labels[j]
                words = f"{'✓' if hit else '✗'} {told[j]}"
                colour = COLOURS[0] if hit else COLOURS[1]
                axes.text(
                    1.06 * j + 0.5, 1.28 * i - 0.06, words, ha="center", color=colour, fontsize=9
                )
        axes.set(xlim=(0, 1.06 * number), ylim=(3.58, -0.26), xticks=[], yticks=[])
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)
        attack = f"attack: {examples.row}; " if examples.row else ""
        footnote(drawing, f"{attack}above each image the prediction: ✓ right, ✗ wrong")
        return save(drawing, path)
