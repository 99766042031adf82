"""Puts the tables, the plots and the page into the directory of a run or of a set of runs."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from advtrain.files import write_text
from advtrain.lock import locked
from advtrain.reporting import bibliography, comparison, paired_formats, plots, report
from advtrain.reporting.claim_plots import certified_curves
from advtrain.reporting.claims import Claims, Wanted
from advtrain.reporting.confusions import confusion_matrices
from advtrain.reporting.frontier_plots import frontier_curves
from advtrain.reporting.logs import Log, read_log
from advtrain.reporting.page import run_page, set_page
from advtrain.reporting.radius_plots import radius_curves
from advtrain.reporting.reading import read_metrics, read_run
from advtrain.reporting.records import Run
from advtrain.reporting.report import Report, report_of
from advtrain.reporting.series import read_examples
from advtrain.reporting.sources import Sources, find
from advtrain.reporting.tables import Table
from advtrain.reporting.values import shown

log = logging.getLogger(__name__)


PATIENCE = 60.0  # seconds that another report of the same folder may take


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Wait for others who write a report into `out`, so that the last to write has read last."""
    if not out.exists():
        yield
        return
    try:
        with locked(out / ".report.lock", wait=PATIENCE):
            yield
    except BlockingIOError as error:
        raise OSError(f"{out}: another process has been at its report for a minute.") from error


def write_run(run_dir: Path, wanted: Wanted | None = None, *, state: str | None = None) -> Report:
    """table.{md,tex,csv}, plots/*.png, references.bib and report.html of one run; may be called
    again any time. `state`: of a run that is about to say so itself.

    A plot that cannot be drawn is told in one line and left out. Raises OSError when the
    directory cannot be written.
    """
    with alone(run_dir):
        run = read_run(run_dir)
        run = replace(run, state=state) if state else run
        found = report_of([run], wanted=wanted)
        pictures = _run_plots(run, found, run_dir)
        _write_tables(found, run_dir, run)
        write_text(run_dir / "report.html", run_page(run, found, pictures))
    return found


def write_set(paths: Sequence[Path], out: Path, wanted: Wanted | None = None) -> Report:
    """The folded table and the page of all runs and logs in or below `paths`, into `out`.

    Where `paths` are single runs, comparison.{md,tex,csv} of all with the first.

    Raises FileNotFoundError for a path that does not exist, ValueError when there is no run and
    no log in any, or when a file that was given is no certification log.
    """
    with alone(out):
        return _write_set(paths, out, wanted)


def _write_set(paths: Sequence[Path], out: Path, wanted: Wanted | None) -> Report:
    sources = find(paths)
    logs, unread = _logs(sources, paths, wanted or Wanted())
    runs = [read_run(directory) for directory in sources.runs]
    if not runs and not logs:
        raise ValueError(" ".join(unread))
    single = not logs and set(sources.runs) == {path.resolve() for path in paths}
    left_out = [*sources.left_out, *unread]
    found = report_of(runs, logs, wanted, paired=single, left_out=left_out)
    out.mkdir(parents=True, exist_ok=True)
    pictures = _set_plots(found, out)
    _write_tables(found, out)
    if found.pairings:
        write_text(out / "comparison.md", paired_formats.markdown(found.pairings))
        write_text(out / "comparison.tex", paired_formats.latex(found.pairings))
        write_text(out / "comparison.csv", paired_formats.comma_separated(found.pairings))
    heading = shown(paths[0].resolve().name) if len(paths) == 1 else "Comparison"
    write_text(out / "report.html", set_page(heading, found, pictures, out))
    return found


def _logs(sources: Sources, given: Sequence[Path], wanted: Wanted) -> tuple[list[Log], list[str]]:
    """The logs, and a sentence for each that cannot be read; an error where it was given itself."""
    named = {path.resolve() for path in given}
    logs, unread = [], []
    for path in sources.logs:
        try:
            logs.append(read_log(path, wanted.alpha))
        except ValueError as error:
            if path in named:
                raise
            unread.append(f"Left out: {shown(error)}")
    return logs, unread


def _write_tables(found: Report, out: Path, run: Run | None = None) -> None:
    if sources := bibliography.cited(found.runs):
        write_text(out / "references.bib", bibliography.bibtex(sources))
    write_text(out / "table.md", report.markdown(found, run))
    write_text(out / "table.tex", report.latex(found))
    for name, text in report.comma_separated(found).items():
        write_text(out / f"{name}.csv", text)


def _run_plots(run: Run, found: Report, run_dir: Path) -> list[Path]:
    folder = _plots(run_dir)

    def example_pictures() -> Path | None:
        examples = read_examples(run_dir)
        return None if examples is None else plots.example_grid(examples, folder / "examples.png")

    for old in folder.glob("*.png"):
        old.unlink(missing_ok=True)
    return _drawn(
        {
            "curves": lambda: plots.training_curves(read_metrics(run_dir), folder / "curves.png"),
            "accuracy": lambda: plots.accuracy_bars(run, folder / "accuracy.png"),
            **_certified(found.claims, folder, "certified"),
            "examples": example_pictures,
            "radii": lambda: radius_curves([("", run)], folder / "radii.png"),
            "confusion": lambda: confusion_matrices(run, folder / "confusion.png"),
            "frontier": lambda: frontier_curves(found.frontiers, folder / "frontier.png"),
        }
    )


def _plots(directory: Path) -> Path:
    """The folder of the figures; a link in its place, which may lead anywhere, is taken away."""
    folder = directory / "plots"
    if folder.is_symlink():
        folder.unlink()
    return folder


def _set_plots(found: Report, out: Path) -> list[Path]:
    folder, table = _plots(out), found.table
    stale = ("certified*.png", "frontier.png", "radii.png")
    for old in [path for pattern in stale for path in folder.glob(pattern)]:
        old.unlink(missing_ok=True)
    return _drawn(
        {
            "accuracy": lambda: comparison.accuracy_dots(table, folder / "accuracy.png"),
            "robust_curves": lambda: comparison.robust_curves(table, folder / "robust_curves.png"),
            "radii": lambda: radius_curves(_first_runs(table), folder / "radii.png"),
            **_certified(found.claims, folder, "certified_curves"),
            "frontier": lambda: frontier_curves(found.frontiers, folder / "frontier.png"),
        }
    )


def _first_runs(table: Table) -> list[tuple[str, Run]]:
    """Each configuration with its first seed."""
    return list({line.label: (line.label, line.runs[0]) for line in table.lines}.values())


def _certified(
    tables: Sequence[Claims], folder: Path, stem: str
) -> dict[str, Callable[[], Path | None]]:
    """A figure per norm; its name says which, if not l2."""

    def drawing(claims: Claims, name: str) -> Callable[[], Path | None]:
        return lambda: certified_curves(claims, folder / f"{name}.png")

    names = [stem if claims.word == "l2" else f"{stem}_{claims.word}" for claims in tables]
    return {name: drawing(claims, name) for claims, name in zip(tables, names, strict=True)}


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
