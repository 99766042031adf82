"""Numbers in words: the one place that says how an accuracy, a radius or a duration is written."""

from advtrain.reporting.records import Row, Run, Stage

DASH = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"


def percent(value: float | None, digits: int = 2) -> str:
    """A fraction of 1 as percent without the sign; a dash for what was not measured."""
    return DASH if value is None else f"{100 * value:.{digits}f}"


def points(difference: float) -> str:
    """`+1.20`: percentage points, with the sign."""
    rounded = f"{100 * difference:+.2f}"
    return "0.00" if not float(rounded) else rounded.replace("-", MINUS)


def fraction(eps: float | None) -> str:
    """A radius as users write it: 8/255 where it is a whole number of grey levels, else 0.3."""
    if eps is None:
        return DASH
    levels = eps * 255
    whole = 0 < levels < 128 and abs(levels - round(levels)) < 1e-4
    return f"{round(levels)}/255" if whole else f"{eps:.4g}"


def count(value: float | None) -> str:
    """12 345 678 as 12.3 M."""
    if value is None:
        return DASH
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.3g} {letter}"
    return f"{value:.0f}"


def duration(seconds: float | None) -> str:
    """1.3 s, 4 min 05 s, 2 h 31 min."""
    if seconds is None:
        return DASH
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def radii(run: Run, norm: str) -> str:
    """The radius of all rows of a norm, `8/255`, or the range of several, `eps 0.15 to 0.5`."""
    known = sorted({row.eps for row in run.rows if row.norm == norm and row.eps is not None})
    told = list(dict.fromkeys(map(fraction, known)))
    return f"eps {told[0]} to {told[-1]}" if len(told) > 1 else "".join(told)


def settings(row: Row) -> str:
    """Strength of the attack behind a row, short: `linf 8/255, 20 steps, 2 restarts`.

    The attack itself comes first where the row is not named for it.
    """
    named = row.name.lower().startswith(row.attack.lower())
    parts = [] if named else [row.attack]
    if row.norm and row.eps is not None:
        parts.append(f"{row.norm} {fraction(row.eps)}")
    if row.steps:
        parts.append(f"{row.steps} step{'s' if row.steps > 1 else ''}")
    if row.restarts and row.restarts > 1:
        parts.append(f"{row.restarts} restarts")
    if row.queries:
        parts.append(f"{row.queries} queries")
    if row.version:
        parts.append(row.version)
    if row.through:
        parts.append(f"through {row.through}")
    return ", ".join(parts)


def described(row: Row) -> str:
    """`settings`, and what single draws of a stochastic network say at the same points."""
    if row.draws is None:
        return settings(row)
    sd = "" if row.draws.sd is None else f" ± {percent(row.draws.sd, 1)}"
    told = f"one draw {percent(row.draws.mean, 1)}{sd} ({row.draws.n} draws)"
    return "; ".join(filter(None, [settings(row), told]))


def stages(run: Run, row: Row) -> str:
    """What each attack of a row left: `clean 98.3 → apgd_ce 85.0 → square 79.7`."""
    clean = [r for r in run.rows if r.name == "clean" and r.view == row.view and r.n == row.n]
    steps: list[Row | Stage] = [*clean[:1], *row.stages]
    return " → ".join(f"{step.name} {percent(step.accuracy, 1)}" for step in steps)
