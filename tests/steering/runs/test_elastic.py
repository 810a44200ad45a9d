from dataclasses import dataclass, field

from steering.runs import config


@dataclass
class Task:
    noise: float = 0.1
    workers: int = field(default=0, metadata={"elastic": True})


def test_a_task_says_which_options_may_change_when_a_run_resumes():
    assert config.elastic(Task()) == {"device", "threads", "options.workers"}  # type: ignore[arg-type]
