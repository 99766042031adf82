"""Puts the tables, the plots and the page into the directory of a run or of a set of runs."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from advtrain.files import write_text
from advtrain.reporting import comparison, formats, frontier_formats, paired_formats, plots
from advtrain.reporting.frontier import Frontier, frontiers
from advtrain.reporting.frontier_plots import frontier_curves
from advtrain.reporting.page import run_page, set_page
from advtrain.reporting.paired import Pairing, pairings
from advtrain.reporting.reading import find_runs, read_metrics, read_run
from advtrain.reporting.records import Run
from advtrain.reporting.series import read_examples, read_radii
from advtrain.reporting.tables import Table, accuracy_table

log = logging.getLogger(__name__)


def write_run(run_dir: Path) -> None:
    """table.{md,tex,csv}, plots/*.png and report.html of one run; may be called again any time.

    A plot that cannot be drawn is told in one line and left out. Raises OSError when the
    directory cannot be written.
    """
    run = read_run(run_dir)
    table = accuracy_table([run])
    curves = frontiers(table)
    pictures = _run_plots(run, run_dir, curves)
    _write_tables(table, run_dir, curves, run)
    write_text(run_dir / "report.html", run_page(run, pictures, curves))


def write_sweep(dirs: Sequence[Path], out: Path) -> Table:
    """The folded table and the page of all runs in or below `dirs`, into the folder `out`.

    Raises FileNotFoundError or NotADirectoryError for a path that is no folder, ValueError when
    there is no run in any.
    """
    return write_set(dirs, out)[0]


def write_set(dirs: Sequence[Path], out: Path) -> tuple[Table, tuple[Pairing, ...]]:
    """The same; and where `dirs` are single runs, comparison.{md,tex,csv} of all with the first.

    Returns the table and the comparisons, none for grids or for one run. Raises as `write_sweep`.
    """
    found = find_runs(dirs)
    if not found:
        places = ", ".join(str(path) for path in dirs)
        raise ValueError(
            f"No runs in {places}: no folder there holds results.json or status.json. "
            "Give the directory of a run or of a grid, as outputs/multirun/2026-01-31_12-00-00."
        )
    runs = [read_run(directory) for directory in found]
    table = accuracy_table(runs)
    single = set(found) == {path.resolve() for path in dirs}
    paired = pairings(runs) if single else ()
    out.mkdir(parents=True, exist_ok=True)
    curves = frontiers(table)
    pictures = _set_plots(table, out, curves)
    _write_tables(table, out, curves)
    if paired:
        write_text(out / "comparison.md", paired_formats.markdown(paired))
        write_text(out / "comparison.tex", paired_formats.latex(paired))
        write_text(out / "comparison.csv", paired_formats.comma_separated(paired))
    heading = dirs[0].resolve().name if len(dirs) == 1 else "Comparison"
    write_text(out / "report.html", set_page(heading, table, runs, pictures, out, paired, curves))
    return table, paired


def _write_tables(
    table: Table, out: Path, curves: Sequence[Frontier], run: Run | None = None
) -> None:
    """Tables of accuracies, behind them those of frontiers; and these by themselves as CSV."""
    write_text(out / "table.md", formats.markdown(table, run) + frontier_formats.markdown(curves))
    write_text(out / "table.tex", formats.latex(table) + frontier_formats.latex(curves))
    write_text(out / "table.csv", formats.comma_separated(table))
    if curves:
        write_text(out / "frontier.csv", frontier_formats.comma_separated(curves))


def _run_plots(run: Run, run_dir: Path, curves: Sequence[Frontier]) -> list[Path]:
    folder = run_dir / "plots"

    def certified_pictures() -> Path | None:
        if run.certified is None:  # the log beside it is of other weights, or unfinished
            return None
        return plots.certified_curve(run, read_radii(run_dir), folder / "certified.png")

    def example_pictures() -> Path | None:
        examples = read_examples(run_dir)
        return None if examples is None else plots.example_grid(examples, folder / "examples.png")

    for old in folder.glob("*.png"):
        old.unlink()
    return _drawn(
        {
            "curves": lambda: plots.training_curves(read_metrics(run_dir), folder / "curves.png"),
            "accuracy": lambda: plots.accuracy_bars(run, folder / "accuracy.png"),
            "certified": certified_pictures,
            "examples": example_pictures,
            "frontier": lambda: frontier_curves(curves, folder / "frontier.png"),
        }
    )


def _set_plots(table: Table, out: Path, curves: Sequence[Frontier]) -> list[Path]:
    folder = out / "plots"
    return _drawn(
        {
            "accuracy": lambda: comparison.accuracy_dots(table, folder / "accuracy.png"),
            "robust_curves": lambda: comparison.robust_curves(table, folder / "robust_curves.png"),
            "certified_curves": lambda: comparison.certified_curves(
                table, folder / "certified_curves.png"
            ),
            "frontier": lambda: frontier_curves(curves, folder / "frontier.png"),
        }
    )


def _drawn(drawings: Mapping[str, Callable[[], Path | None]]) -> list[Path]:
    """The files of those that could be drawn: a figure is never worth a run."""
    paths = []
    for name, draw in drawings.items():
        try:
            path = draw()
        except Exception as error:
            first = next(iter(str(error).splitlines()), "")
            log.warning("The plot %s is left out: %s: %s", name, type(error).__name__, first)
            continue
        paths += [path] if path is not None else []
    return paths
