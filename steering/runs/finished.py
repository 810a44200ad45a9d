"""Whether anything is left to do in a run folder, found out without torch, the task or its data."""

from pathlib import Path

from steering.runs.config import RunConfig, differences, read
from steering.runs.summary import Summary


def finished(folder: Path, config: RunConfig | None = None) -> Summary | None:
    """The summary of a run of which every part is there as it was summed up, and the report; else None.

    Args:
        folder: of a run, perhaps.
        config: that it must have to the letter; None for whatever it has.
    """
    try:
        written = RunConfig.model_validate(read(folder / "config.yaml"))
        summary = Summary.model_validate_json((folder / "summary.json").read_text())
        parts = [
            (folder / "arms" / name / f"seed{result.seed}" / "result.json").read_text().strip()
            == result.model_dump_json(indent=1)
            for name, arm in summary.arms.items()
            for result in arm.results
        ]
    except (OSError, ValueError):
        return None
    arms = ["reference", *written.recipe.arms]
    complete = list(summary.arms) == arms and len(parts) == len(arms) * written.recipe.seeds
    same = config is None or not differences(written, config)
    return summary if complete and same and all(parts) and (folder / "report.html").exists() else None
