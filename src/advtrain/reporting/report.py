"""All that a report shows of runs and logs, as one value, and the texts made of it."""

from collections.abc import Sequence
from dataclasses import dataclass

from advtrain.reporting import claim_formats, formats, frontier_formats, study
from advtrain.reporting.claim_tables import claim_tables
from advtrain.reporting.claims import Claims, Wanted
from advtrain.reporting.frontier import Frontier, frontiers
from advtrain.reporting.logs import Log
from advtrain.reporting.markup import LATEX, MARKDOWN
from advtrain.reporting.paired import Pairing, pairings
from advtrain.reporting.records import Run
from advtrain.reporting.soundness import failure, reassurance
from advtrain.reporting.tables import Table, accuracy_table


@dataclass(frozen=True)
class Report:
    """`named` pairs each run with its label in `table`, empty where there is one run alone.

    `left_out`: a sentence for what was found and not read.
    """

    runs: tuple[Run, ...]
    logs: tuple[Log, ...]
    table: Table
    claims: tuple[Claims, ...]
    pairings: tuple[Pairing, ...]
    named: tuple[tuple[str, Run], ...]
    left_out: tuple[str, ...] = ()

    @property
    def failures(self) -> list[str]:
        """A sentence for each run with a broken certificate."""
        return [_about(label, failure(run)) for label, run in self.named if failure(run)]

    @property
    def reassurances(self) -> list[str]:
        """A sentence for each run whose certificates were attacked in vain."""
        return [_about(label, reassurance(run)) for label, run in self.named if reassurance(run)]

    @property
    def accuracies(self) -> Table:
        """The table without what the tables of certificates show."""
        return self.table.without(("certified", "acr")) if self.claims else self.table

    @property
    def frontiers(self) -> tuple[Frontier, ...]:
        return frontiers(self.table)

    @property
    def studies(self) -> study.Named:
        return study.studies(self.named)


def report_of(
    runs: Sequence[Run],
    logs: Sequence[Log] = (),
    wanted: Wanted | None = None,
    *,
    paired: bool = False,
    left_out: Sequence[str] = (),
) -> Report:
    """The report of `runs` and `logs`; with `paired`, runs are compared example by example."""
    table = accuracy_table(runs)
    labels = {id(run): (line.label, line.seeds) for line in table.lines for run in line.runs}
    several = len(runs) > 1
    named = []
    for run in runs:
        if id(run) in labels:
            label, seeds = labels[id(run)]
            seed = f", seed {run.seed}" if seeds > 1 and run.seed is not None else ""
            named.append((f"{label}{seed}" if several else "", run))
    return Report(
        runs=tuple(runs),
        logs=tuple(logs),
        table=table,
        claims=claim_tables(table, logs, wanted),
        pairings=pairings(runs) if paired else (),
        named=tuple(named),
        left_out=tuple(left_out),
    )


def markdown(report: Report, run: Run | None = None) -> str:
    """table.md: errors first, then accuracies, frontiers, certificates and answers of PREDICT."""
    parts = [f"> **ERROR: {MARKDOWN.text(words)}**\n" for words in report.failures]
    if report.table.lines:
        curves = frontier_formats.markdown(report.frontiers)
        parts.append(formats.markdown(report.accuracies, run) + curves)
    parts += [claim_formats.markdown(report.claims)] if report.claims else []
    parts += [f"{MARKDOWN.text(words)}\n" for words in report.reassurances]
    parts += [study.markdown(report.studies)] if report.studies else []
    parts += [f"{MARKDOWN.text(words)}\n" for words in report.left_out]
    return "\n".join(parts)


def latex(report: Report) -> str:
    """table.tex, in the same order."""
    parts = [
        f"\\noindent\\textbf{{ERROR: {LATEX.text(words)}}}\\par\n" for words in report.failures
    ]
    if report.table.lines:
        parts.append(formats.latex(report.accuracies) + frontier_formats.latex(report.frontiers))
    parts += [claim_formats.latex(report.claims)] if report.claims else []
    parts += [study.latex(report.studies)] if report.studies else []
    return "\n".join(parts)


def comma_separated(report: Report) -> dict[str, str]:
    """The CSV files by name: table, and certified, predict and frontier where the runs have them.

    Of logs alone, table is that of the certificates.
    """
    files = {"table": formats.comma_separated(report.table)} if report.table.lines else {}
    if report.claims:
        name = "certified" if files else "table"
        files[name] = claim_formats.comma_separated(report.claims)
    if report.studies:
        files["predict"] = study.comma_separated(report.studies)
    if report.frontiers:
        files["frontier"] = frontier_formats.comma_separated(report.frontiers)
    return files


def _about(label: str, words: str) -> str:
    return f"{label}: {words}" if label else words
