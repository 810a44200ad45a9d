"""The report of a run: its numbers, tables, plots and sentences as data."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steering import atomic_files
from steering.errors import UserError
from steering.reports.report import Plot, Report, attempted, write_page
from steering.runs.statistics import Interval
from steering.runs.summary import Journal, Summary
from steering.runs.table import arms_table, differences_table, metric_format, settings_table

if TYPE_CHECKING:
    from steering.task import Exhibit


def as_report(summary: Summary, **parts: Any) -> Report:
    """What a finished run says.

    Args:
        summary: final numbers.
        parts: other fields of the report: plots, exhibits, config, environment.
    """
    count = f"{len(summary.arms)} arms, {summary.seeds} seed{'' if summary.seeds == 1 else 's'}"
    skipped = [f"{n} sample{'' if n == 1 else 's'} left out: {reason}" for reason, n in summary.skipped.items()]
    verdict, *findings = sentences(summary)
    return Report(
        title=summary.task,
        question=f"{count}; started {summary.started[:16].replace('T', ' ')}; took {duration(summary.seconds)}",
        verdict=verdict,
        findings=findings,
        cautions=[*summary.cautions, *skipped],
        grids=[grid for grid in (arms_table(summary), differences_table(summary)) if grid],
        details=[settings_table(summary)],
        numbers=summary.model_dump(),
        command=summary.command,
        **parts,
    )


def write_report(
    folder: Path, summary: Summary, records: Sequence[Mapping[str, Any]] = (), exhibits: "Iterable[Exhibit]" = ()
) -> Path:
    """Writes report.html and the plots into the folder of a run.

    config.yaml and environment.json are shown where the folder has them.

    Args:
        folder: of the run.
        summary: final numbers.
        records: lines of metrics.jsonl, for the curves.
        exhibits: what the task has to show; where it cannot be drawn, a caution says so.

    Returns:
        The path of the page.

    Raises:
        RunError: the disk is full or read-only; an earlier report is kept.
    """
    from steering.runs.plots import draw

    files = [folder / "config.yaml", folder / "environment.json"]
    config, environment = (atomic_files.read_text(path) if path.exists() else "" for path in files)
    cautions: list[str] = []
    plots = attempted("the plots", lambda: draw(summary, records), cautions)
    pictures = (Plot("", exhibit.title, exhibit.text, bytes(exhibit.png)) for exhibit in exhibits)
    shown = attempted("the exhibits", lambda: pictures, cautions)
    about = {"config": config, "environment": json.loads(environment or "{}")}
    report = as_report(summary, plots=plots, exhibits=shown, **about)
    report.cautions.extend(cautions)
    return write_page([report], folder, report.title, report.question)


def read_run(folder: Path) -> Report:
    """What the finished run in a folder says.

    Raises:
        UserError: the folder holds no finished run.
    """
    from steering.runs.plots import draw

    try:
        summary = Summary.model_validate_json(atomic_files.read_text(folder / "summary.json"))
    except (OSError, ValueError):
        raise UserError(f"{folder} holds neither a report nor a finished run (report.json or summary.json)") from None
    return as_report(summary, plots=draw(summary, Journal(folder / "metrics.jsonl").records()))


def duration(seconds: float) -> str:
    """Seconds in the two units that matter."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def sentences(summary: Summary) -> list[str]:
    """What the headline metric says, the most important first, and no more than the seeds can carry."""
    name, baseline = summary.headline, summary.baseline
    means = {arm: mean for arm, s in summary.arms.items() if (mean := s.interval(name))}
    finished = {arm: summary.arms[arm] for arm in means}
    trained = [arm for arm, s in finished.items() if s.kind == "trained" and arm != baseline]
    rivals = [arm for arm in trained if summary.arms[arm].steered] or trained
    if baseline not in means or not rivals:
        return [f"{summary.metrics[name].label}: there is no pair of arms to compare."]
    noun = "steered arm" if summary.arms[rivals[0]].steered else "arm"
    best = _best(summary, rivals)
    gains = [gain for arm in rivals if (gain := summary.gain(arm, baseline)) and gain.seeds > 1]
    if not gains:
        winner = f"{best}, the best of {len(rivals)} {noun}s," if len(rivals) > 1 else best
        percent = " %" if summary.metrics[name].percent else ""
        a, b = (f"{metric_format(summary, name).number(means[arm].mean)}{percent}" for arm in (best, baseline))
        return [
            f"One seed gives no interval, so nothing is decided: {summary.metrics[name].label} is {a} for {winner} "
            f"and {b} for the baseline {baseline}."
        ]
    lines = [] if len(rivals) == 1 else [_count_verdicts(summary, gains, noun)]
    lines.append(compared(summary, best, baseline))
    # Who else has to be beaten before steering gets the credit: the best plain arm, and the reference.
    plain = _best(summary, [arm for arm, s in finished.items() if s.kind == "trained" and not s.steered])
    references = [arm for arm, s in finished.items() if s.kind == "reference"]
    others = [plain] * (plain != baseline) + references
    lines += [compared(summary, best, other) for other in others if other != best]
    if len(rivals) > 1:
        lines.append(f"{best} has the best mean of them; being picked for that flatters it.")
    return lines


def compared(summary: Summary, arm: str, other: str) -> str:
    """One comparison as a sentence, with both means, the paired difference and its interval."""
    name = summary.headline
    metric, style = summary.metrics[name], metric_format(summary, name)
    gain, a, b = summary.gain(arm, other), summary.arms[arm].interval(name), summary.arms[other].interval(name)
    if not (gain and a and b):
        return f"{arm} and {other} share no seed."
    percent, points = (" %", " points") if metric.percent else ("", "")
    itself = "the reference itself" if summary.arms[other].kind == "reference" else ""
    against = itself or f"{other}, the best arm without the reference,"
    against = f"the baseline {other}" if other == summary.baseline else against
    means = f"{style.number(a.mean)}{percent} against {style.number(b.mean)}{percent}"
    change = f"{style.finer().number(gain.mean, sign=True)}{points}"
    if gain.low is None:
        same = "the same in every seed" if gain.seeds > 1 else "one seed"
        why = f"{same if math.isfinite(gain.mean) else 'not a number'}: there is no interval"
    else:
        covers = ": it covers zero" if gain.verdict == "undecided" else ""
        why = f"95 % interval {style.finer().ends(gain)}, {gain.seeds} seeds{covers}"
    says = f"against {against} is undecided" if gain.verdict == "undecided" else f"is {gain.verdict} than {against}"
    return f"{arm} {says} in {metric.label}: {means}, a gain of {change} ({why})."


def _count_verdicts(summary: Summary, gains: list[Interval], noun: str) -> str:
    """How many arms there are of every verdict against the baseline."""
    verdicts = [gain.verdict for gain in gains]
    counts = {v: verdicts.count(v) for v in ("better", "worse", "undecided") if v in verdicts}
    rest = f"the baseline {summary.baseline} in {summary.metrics[summary.headline].label}"
    if len(counts) == 1:
        than = "against" if verdicts[0] == "undecided" else "than"
        every = "Both" if len(gains) == 2 else f"All {len(gains)}"
        return f"{every} {noun}s are {verdicts[0]} {than} {rest}."
    parts = [f"{count} {'is' if count == 1 else 'are'} {verdict}" for verdict, count in counts.items()]
    return f"Of {len(gains)} {noun}s against {rest}, {', '.join(parts[:-1])} and {parts[-1]}."


def _best(summary: Summary, arms: list[str]) -> str:
    """The arm of the best mean, the baseline if there is none; a mean that is not a number comes last."""
    sign = 1 if summary.metrics[summary.headline].better == "high" else -1

    def goodness(arm: str) -> float:
        values = summary.arms[arm].interval(summary.headline)
        return sign * values.mean if values and math.isfinite(values.mean) else -math.inf

    return max(arms, key=goodness, default=summary.baseline)
