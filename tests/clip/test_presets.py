import pytest

from steering import UserError
from steering.clip.presets import PRESETS
from steering.runs import config


def resolved(name: str, **given):
    return config.resolve("clip", preset=name, typed={"options": {"data": "emoji", "ref": None}, **given})[0]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_whole_configuration(name):
    result, settings = resolved(name), PRESETS[name]
    for field, value in settings["recipe"].items():
        if field not in ("arms", "more", "betas"):
            assert getattr(result.recipe, field) == value
    assert list(result.recipe.arms) == list(settings["recipe"]["arms"]) and result.recipe.more
    assert result.recipe.betas == (0.9, 0.98)
    typed = ("ref", "data")
    assert all(result.options[option] == value for option, value in settings["options"].items() if option not in typed)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_without_data_is_refused_and_does_not_train_on_the_bundled_pairs(name):
    with pytest.raises(UserError, match="there is no shard YOUR_SHARDS"):
        config.resolve("clip", preset=name)


def test_what_is_typed_wins_over_a_preset():
    result = resolved("one-gpu", recipe={"steps": 7, "batch": 16})
    assert result.recipe.steps == 7 and result.recipe.batch == 16 and result.options["data"] == "emoji"
    assert result.recipe.precision == "bf16"


def test_an_unknown_preset_is_told_with_the_nearest_name():
    with pytest.raises(UserError, match=r"clip has no preset 'one-gpus'; did you mean one-gpu\? Known: drrho-clip"):
        resolved("one-gpus")
    with pytest.raises(UserError, match=r"digits has no preset 'x'\. Known: none"):
        config.resolve("digits", preset="x")
