import pytest

from steering import UserError
from steering.clip.presets import PRESETS
from steering.runs import config


def resolved(name: str, **given):
    return config.resolve("clip", preset=name, given={"options": {"data": "emoji", "ref": None}, **given})[0]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_whole_configuration(name):
    found = resolved(name)
    assert found.recipe.steps == PRESETS[name]["recipe"]["steps"] and found.recipe.betas == (0.9, 0.98)
    assert list(found.recipe.arms) == list(PRESETS[name]["recipe"]["arms"]) and found.recipe.more
    assert found.options["model"] == PRESETS[name]["options"]["model"]


def test_what_is_typed_wins_over_a_preset():
    found = resolved("one-gpu", recipe={"steps": 7, "batch": 16})
    assert found.recipe.steps == 7 and found.recipe.batch == 16 and found.options["data"] == "emoji"
    assert found.recipe.precision == "bf16"


def test_an_unknown_preset_is_told_with_the_nearest_name():
    with pytest.raises(UserError, match=r"clip has no preset 'one-gpus'; did you mean one-gpu\? Known: drrho-clip"):
        resolved("one-gpus")
    with pytest.raises(UserError, match=r"digits has no preset 'x'\. Known: none"):
        config.resolve("digits", preset="x")
