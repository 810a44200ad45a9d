"""The report of a run: one HTML file that needs nothing else, neither network nor script."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from steering import atomic_files
from steering.errors import UserError
from steering.reports.page import facts, page
from steering.reports.report import Report
from steering.runs.journal import Journal
from steering.runs.plots import draw
from steering.runs.statistics import Interval
from steering.runs.summary import Summary
from steering.runs.table import arms_table, differences_table, metric_format, settings_table, span, tables
from steering.task import Exhibit


def write_report(
    folder: Path,
    summary: Summary,
    records: Sequence[Mapping[str, Any]] = (),
    exhibits: Iterable[Exhibit] = (),
) -> Path:
    """Writes report.html and the figures into the folder of a run.

    config.yaml and environment.json are shown where the folder has them. A report that is being read is
    replaced in one go, never half written.

    Args:
        folder: of the run.
        summary: final numbers.
        records: lines of metrics.jsonl, for the curves.
        exhibits: what the task has to show.

    Returns:
        The path of the report.

    Raises:
        RunError: the disk is full or read-only; an earlier report is kept.
    """
    plots = draw(summary, records)
    for plot in plots:
        atomic_files.write(folder / "plots" / f"{plot.name}.png", plot.png)
    lead, *more = sentences(summary)
    content = page(
        Path(__file__).parent / "report.html",
        summary=summary,
        started=summary.started[:16].replace("T", " "),
        duration=duration(summary.seconds),
        lead=lead,
        more=more,
        arms=arms_table(summary),
        differences=differences_table(summary),
        settings=settings_table(summary),
        plots=plots,
        exhibits=list(exhibits),
        config=_read(folder / "config.yaml"),
        machine=facts(json.loads(_read(folder / "environment.json") or "{}")),
    )
    return atomic_files.write(folder / "report.html", content)


def as_report(folder: Path) -> Report:
    """What a finished run says, in the form of a check.

    Raises:
        UserError: the folder holds no finished run.
    """
    try:
        summary = Summary.model_validate_json((folder / "summary.json").read_text())
    except (OSError, ValueError):
        raise UserError(f"{folder} holds neither a report nor a finished run (report.json or summary.json)") from None
    records = Journal(folder / "metrics.jsonl").records()
    verdict, *findings = sentences(summary)
    return Report(
        title=summary.task,
        question=f"Which of {len(summary.arms)} arms is best, over {summary.seeds} seeds?",
        verdict=verdict,
        findings=findings,
        cautions=list(summary.cautions),
        grids=[*tables(summary), settings_table(summary)],
        plots=draw(summary, records),
        numbers=summary.model_dump(),
        command=summary.command,
    )


def duration(seconds: float) -> str:
    """Seconds in the two units that matter."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


# ----------------------------------------------------------------------------------------------- sentences


def sentences(summary: Summary) -> list[str]:
    """What the headline metric says, the most important first, and no more than the seeds can carry."""
    name, baseline = summary.headline, summary.baseline
    found = {arm: s.interval(name) for arm, s in summary.arms.items()}
    rivals = [a for a, s in summary.arms.items() if s.steered and a != baseline and found[a]]
    what = "steered arm"
    if not rivals:
        what = "arm"
        rivals = [a for a, s in summary.arms.items() if s.kind == "trained" and a != baseline and found[a]]
    if baseline not in summary.arms or not found[baseline] or not rivals:
        return [f"{summary.metrics[name].label}: there is no pair of arms to compare."]
    sign = 1 if summary.metrics[name].better == "high" else -1
    best = max(rivals, key=lambda arm: _finite(sign, found[arm]))
    gains = {arm: summary.gain(arm, baseline) for arm in rivals}
    decided = [gain for gain in gains.values() if gain and gain.seeds > 1]
    if not decided:
        return [_one_seed(summary, best, f"the best of {len(rivals)} {what}s" if len(rivals) > 1 else "")]
    lines = [] if len(rivals) == 1 else [_count_verdicts(summary, decided, what)]
    lines.append(compared(summary, best, baseline))
    lines += [compared(summary, best, other) for other in _others(summary, found, sign) if other != best]
    if len(rivals) > 1:
        lines.append(f"{best} has the best mean of them; being picked for that flatters it.")
    return lines


def compared(summary: Summary, arm: str, other: str) -> str:
    """One comparison in words, with both means, the paired difference and its interval."""
    name = summary.headline
    metric, style = summary.metrics[name], metric_format(summary, name)
    gain, mine, theirs = summary.gain(arm, other), summary.arms[arm], summary.arms[other]
    a, b = mine.interval(name), theirs.interval(name)
    if not (gain and a and b):
        return f"{arm} and {other} share no seed."
    percent, points = (" %", " points") if metric.percent else ("", "")
    against = f"the baseline {other}" if other == summary.baseline else _called(summary, other)
    means = f"{style.number(a.mean)}{percent} against {style.number(b.mean)}{percent}"
    change = f"{style.finer().number(gain.mean, sign=True)}{points}"
    if gain.low is None:
        same = "the same in every seed" if gain.seeds > 1 else "one seed"
        why = f"{same if math.isfinite(gain.mean) else 'not a number'}: there is no interval"
    else:
        covers = ": it covers zero" if gain.verdict == "undecided" else ""
        why = f"95 % interval {span(gain, style.finer())}, {gain.seeds} seeds{covers}"
    says = f"against {against} is undecided" if gain.verdict == "undecided" else f"is {gain.verdict} than {against}"
    return f"{arm} {says} in {metric.label}: {means}, a gain of {change} ({why})."


def _one_seed(summary: Summary, best: str, which: str) -> str:
    name = summary.headline
    metric, style = summary.metrics[name], metric_format(summary, name)
    percent = " %" if metric.percent else ""
    mine, base = summary.arms[best].interval(name), summary.arms[summary.baseline].interval(name)
    assert mine and base
    winner = f"{best}, {which}," if which else best
    return (
        f"One seed gives no interval, so nothing is decided: {metric.label} is "
        f"{style.number(mine.mean)}{percent} for {winner} and {style.number(base.mean)}{percent} "
        f"for the baseline {summary.baseline}."
    )


def _count_verdicts(summary: Summary, gains: list[Interval], what: str) -> str:
    """How many arms there are of every verdict against the baseline."""
    verdicts = [gain.verdict for gain in gains]
    counts = {v: verdicts.count(v) for v in ("better", "worse", "undecided") if v in verdicts}
    rest = f"the baseline {summary.baseline} in {summary.metrics[summary.headline].label}"
    if len(counts) == 1:
        than = "against" if verdicts[0] == "undecided" else "than"
        every = "Both" if len(gains) == 2 else f"All {len(gains)}"
        return f"{every} {what}s are {verdicts[0]} {than} {rest}."
    parts = [f"{count} {'is' if count == 1 else 'are'} {verdict}" for verdict, count in counts.items()]
    return f"Of {len(gains)} {what}s against {rest}, {', '.join(parts[:-1])} and {parts[-1]}."


def _others(summary: Summary, found: dict[str, Interval | None], sign: int) -> list[str]:
    """Who else has to be beaten before steering gets the credit: the best plain arm, and the reference."""
    plain = [a for a, s in summary.arms.items() if s.kind == "trained" and not s.steered and found[a]]
    best = max(plain, key=lambda arm: _finite(sign, found[arm]), default=summary.baseline)
    references = [a for a, s in summary.arms.items() if s.kind == "reference" and found[a]]
    return [best] * (best != summary.baseline) + references


def _called(summary: Summary, arm: str) -> str:
    if summary.arms[arm].kind == "reference":
        return "the reference itself"
    return f"{arm}, the best arm without the reference,"


def _finite(sign: int, found: Interval | None) -> float:
    """Orders means; one that is not a number comes last."""
    return sign * found.mean if found and math.isfinite(found.mean) else -math.inf


# --------------------------------------------------------------------------------------------------- files


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""
