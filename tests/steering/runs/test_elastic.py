from dataclasses import dataclass, field

from steering.runs import config


@dataclass
class Task:
    noise: float = 0.1
    workers: int = field(default=0, metadata={"elastic": True})


def test_a_task_says_which_options_may_change_when_a_run_resumes():
    free = config.elastic(Task())  # type: ignore[arg-type]
    assert {name for name in free if name.startswith("options.")} == {"options.workers"}


def test_how_a_run_is_computed_may_change_and_what_may_not():
    free = config.elastic(Task())  # type: ignore[arg-type]
    assert {"device", "recipe.micro_batch", "recipe.parallel", "recipe.grad_checkpointing"} < free
    assert not {"recipe.batch", "recipe.steps", "recipe.precision", "recipe.learning_rate"} & free
