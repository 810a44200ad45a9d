"""Where a setting comes from, what is refused, and that a configuration written down is the one that ran."""

import dataclasses
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from steering import UserError
from steering.runs import config as configs
from steering.runs.config import RunConfig, resolve
from steering.tasks.digits import Digits


def settle(
    *sets: str, task: str | None = "digits", text: str | None = None, folder: Path = Path(), **typed
) -> RunConfig:
    """The configuration of options, settings and the text of a file."""
    file = None
    if text is not None:
        file = folder / "settings.yaml"
        file.write_text(text)
    return resolve(task, file=file, sets=sets, typed=typed)[0]


def refusal(*sets: str, **typed) -> str:
    with pytest.raises(UserError) as caught:
        settle(*sets, **typed)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -------------------------------------------------------------------------------------------- who wins


# What config.yaml says of digits when nothing was typed: every option, whatever its default becomes.
DEFAULTS = {field.name: field.default for field in dataclasses.fields(Digits)}


def test_without_options_a_run_follows_the_recipe_of_the_task():
    config, task = resolve("digits")
    assert config.recipe == task.recipe and config.options == DEFAULTS and config.task == "digits"


def test_a_file_wins_over_the_recipe_and_options_over_the_file(tmp_path):
    text = "recipe: {steps: 7, batch: 9, warmup: 3}\noptions: {noise: 0.1, samples: 50}"
    config = settle(text=text, folder=tmp_path, recipe={"batch": 11}, options={"noise": 0.2})
    assert (config.recipe.steps, config.recipe.batch, config.recipe.warmup) == (7, 11, 3)
    assert config.options == DEFAULTS | {"noise": 0.2, "samples": 50}


def test_what_is_set_by_path_wins_over_all_else(tmp_path):
    config = settle("recipe.steps=5", text="recipe: {steps: 7}", folder=tmp_path, recipe={"steps": 6})
    assert config.recipe.steps == 5


def test_a_constructor_call_on_the_command_line_wins_over_a_file(tmp_path):
    text = "task: digits(noise=0.1)\noptions: {samples: 50}"
    assert settle(task=None, text=text, folder=tmp_path).options == DEFAULTS | {"noise": 0.1, "samples": 50}
    assert settle(task="digits(noise=0.3)", text=text, folder=tmp_path).options == DEFAULTS | {
        "noise": 0.3,
        "samples": 50,
    }
    assert settle("task=blobs", task="digits").task == "blobs"


def test_an_option_wins_over_a_constructor_call():
    assert settle(task="digits(noise=0.3)", options={"noise": 0.2}).options == DEFAULTS | {"noise": 0.2}


def test_one_setting_of_an_arm_changes_nothing_else_of_it():
    before, after = settle().recipe.arms, settle("recipe.arms.drrho_kl.gamma=0.5").recipe.arms
    assert after["drrho_kl"] == before["drrho_kl"].model_copy(update={"gamma": 0.5})
    assert list(after) == list(before)


def test_a_new_arm_stands_beside_the_others():
    arms = settle("recipe.arms.mine.rule=kl(rho=3)").recipe.arms
    assert list(arms)[-1] == "mine" and len(arms) == len(settle().recipe.arms) + 1


def test_the_arms_of_a_file_are_all_there_are(tmp_path):
    text = "recipe: {arms: {mine: {rule: uniform}}, baseline: mine}"
    assert list(settle(text=text, folder=tmp_path).recipe.arms) == ["mine"]


def test_settings_that_are_typed_may_refer_to_the_environment_and_all_to_one_another(tmp_path, monkeypatch):
    monkeypatch.setenv("CHIP", "cuda:1")
    assert settle("device=${oc.env:CHIP}").device == "cuda:1"
    assert settle(text="threads: 3\nrecipe: {steps: '${threads}'}", folder=tmp_path).recipe.steps == 3


@pytest.mark.parametrize("text", ["", "recipe:", "options:\nrecipe:\n"])
def test_an_empty_file_or_group_changes_nothing(tmp_path, text):
    assert settle(text=text, folder=tmp_path) == settle()


# ------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    "setting, message",
    [
        ("recipe.stepz=5", "no setting is named 'stepz' in recipe; did you mean steps? Known: steps, batch, "),
        ("recipe.arms.erm.rul=kl", "no setting is named 'rul' in recipe.arms.erm; did you mean rule? Known: rule, sel"),
        ("foo=1", "no setting is named 'foo' at the top. Known: task, options, recipe, device, threads"),
        ("recipe.steps=0", "recipe.steps: input should be greater than or equal to 1, got 0"),
        ("recipe.optimizer=lion", "recipe.optimizer: input should be 'adamw', 'adam' or 'sgd', got 'lion'"),
        ("recipe.arms.erm=null", "recipe.arms.erm: input should be a valid dictionary or instance of Arm, got None"),
        ("recipe.arms=[1]", "a list cannot replace a group of settings: write recipe.arms.NAME.rule=uniform say"),
        ("recipe=5", "recipe is a group of settings, such as recipe.name=value; got 5"),
        ("recipe.baseline=emr", "recipe.baseline is 'emr', which is no arm: erm, dro, drrho_kl, drrho_cvar"),
        ("recipe.arms.reference.rule=uniform", "an arm cannot be named 'reference': use letters, digits, - and _"),
        (
            "recipe.arms.erm.rule=klx",
            "no rule is named 'klx'; did you mean kl? Known: auto, chi_square, cvar, global_contrastive, individual, ",
        ),
        (
            "options.nois=0.1",
            "digits has no nois; did you mean noise? It takes samples, noise, reference_samples, ",
        ),
        ("options.noise=2", "digits needs a noise within 0 and 1, got 2"),
        (
            "options.noise=x",
            "digits: noise: input should be a valid number, unable to parse string as a number, got 'x'",
        ),
        ("task=digist", "no task is named 'digist'; did you mean digits?"),
        ("recipe.steps", "--set takes a.b=c, got 'recipe.steps'; write --set recipe.steps=100 say"),
        ("recipe.steps=[", "--set recipe.steps=[: while parsing"),
        ("recipe.steps=${x}", "--set recipe.steps=${x}: Interpolation key 'x' not found"),
    ],
)
def test_a_wrong_setting_is_one_line(setting, message):
    assert refusal(setting).startswith(message)


@pytest.mark.parametrize(
    "text, message",
    [
        ("recipe: {steps: 4, steps: 5}", "found duplicate key steps"),
        ("recipe: {arms: }", "recipe.arms: input should be a valid dictionary, got None"),
        ("recipe: {arms: {mine: {}}}", "recipe.baseline is 'erm', which is no arm: mine"),
        ("1: 2", "no setting is named '1' at the top"),
        ("recipe: {1: 2}", "recipe.1: keys should be strings, got 1"),
        ("x: ${y}", "Interpolation key 'y' not found"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, text, message):
    assert message in refusal(text=text, folder=tmp_path)


def test_a_wrong_file_is_wrong_although_an_option_covers_it(tmp_path):
    assert "recipe is a group" in refusal(text="recipe: 5", folder=tmp_path, recipe={"steps": 5})


def test_a_file_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no configuration file at"):
        resolve("digits", file=tmp_path / "b.yaml")


def test_a_run_needs_a_task():
    assert refusal(task=None).startswith("no task given: steer run TASK. Known: blobs, clip, diabetes, digits")


# ------------------------------------------------------------------------------------------ written down


def test_a_configuration_that_was_written_down_is_read_as_it_was(tmp_path):
    sets = ["recipe.clip_norm=0.5", "recipe.learning_rate=1e-05", "recipe.arms.new.selector=top_k(keep=0.5)"]
    config = settle(*sets, task="digits(noise=0.2)", threads=2, device="cpu")
    (tmp_path / "config.yaml").write_text(configs.text(config))
    assert configs.load(tmp_path / "config.yaml") == config
    assert resolve(None, file=tmp_path / "config.yaml")[0] == config


def test_arms_that_were_left_out_stay_out_when_the_file_is_run_again(tmp_path):
    config = settle()
    few = {"arms": {"dro": config.recipe.arms["dro"].model_dump()}, "baseline": "dro"}
    config = configs.validate(config.model_dump() | {"recipe": config.recipe.model_dump() | few})
    (tmp_path / "config.yaml").write_text(configs.text(config))
    assert resolve(None, file=tmp_path / "config.yaml")[0] == config


def test_differences_are_named_with_both_values():
    changed = configs.differences(
        settle(), settle("recipe.steps=5", "recipe.arms.new.rule=uniform", "options.noise=0.1")
    )
    assert "recipe.steps 150 -> 5" in changed and "options.noise 0.4 -> 0.1" in changed
    assert "recipe.arms.new.rule None -> uniform" in changed
    assert configs.differences(settle(), settle()) == []


def test_a_configuration_is_written_as_plain_yaml(tmp_path):
    (tmp_path / "config.yaml").write_text(configs.text(settle()))
    text = (tmp_path / "config.yaml").read_text()
    assert "!!" not in text and OmegaConf.create(text).recipe.steps == 150


def test_a_preset_and_a_file_are_one_too_many(tmp_path):
    (tmp_path / "a.yaml").write_text("task: clip")
    with pytest.raises(UserError, match=r"a preset and a file of settings, one-gpu and .*a.yaml: give one of them"):
        resolve(None, file=tmp_path / "a.yaml", preset="one-gpu")


def test_names_of_earlier_versions_are_still_read(tmp_path):
    file = tmp_path / "old.yaml"
    file.write_text(
        "task: digits\nrecipe:\n  scale_rate: 0.5\n  arms:\n"
        "    erm: {rate: 0.4, rate_schedule: cosine, rate_decay: 0.5}\n"
    )
    config, _ = resolve(None, file=file, sets=["recipe.arms.erm.rate=0.3"])
    arm = config.recipe.arms["erm"]
    assert config.recipe.scalar_lr_factor == 0.5
    assert (arm.gamma, arm.gamma_schedule, arm.gamma_decay) == (0.3, "cosine", 0.5)


@dataclasses.dataclass
class Loaded:
    noise: float = 0.1
    workers: int = dataclasses.field(default=0, metadata={"elastic": True})


def test_how_a_run_is_computed_may_change_when_it_resumes_and_what_may_not():
    free = configs.elastic(Loaded())  # type: ignore[arg-type]
    assert {name for name in free if name.startswith("options.")} == {"options.workers"}
    assert {"device", "recipe.micro_batch", "recipe.parallel", "recipe.grad_checkpointing"} < free
    assert not {"recipe.batch", "recipe.steps", "recipe.precision", "recipe.learning_rate"} & free
