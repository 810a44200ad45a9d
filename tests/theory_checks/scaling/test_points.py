import pytest

from steering import UserError
from steering.theory_checks.scaling.points import ALL, SIX, Point, named, published, where


def test_the_published_points_are_eleven_a_method_in_the_same_settings():
    points = published()
    settings = [
        {(p.model, p.samples, p.compute) for p in points if p.method == name} for name in ("OpenCLIP", "DRRho-CLIP")
    ]
    assert settings[0] == settings[1] and len(settings[0]) == 11 == len(points) // 2
    point = next(p for p in points if p.model == "ViT-B/16" and p.samples == 1.28e9)
    assert point.compute == pytest.approx(41.09 * 1.28e9) and point.error == pytest.approx(0.325)


def test_the_six_are_the_small_models_without_the_shortest_runs():
    six = [p for p in named(published(), SIX) if p.method == "OpenCLIP"]
    assert {(p.model, p.samples) for p in six} == {
        (model, samples) for model in ("ViT-B/32", "ViT-B/16") for samples in (0.64e9, 1.28e9, 2.56e9)
    }
    assert named(published(), ALL) == published()
    with pytest.raises(UserError, match=r"no subset 'seven'.*published-six and all"):
        named(published(), "seven")


@pytest.mark.parametrize(
    "conditions, kept",
    [
        (["model=ViT-B/32, ViT-L/14"], 14),
        (["samples>=1.28e9"], 10),
        (["samples=6.4e8"], 6),
        (["model=ViT-B/32", "samples<=6.4e8"], 4),
    ],
)
def test_conditions_choose_points_and_must_all_be_met(conditions, kept):
    assert len(where(published(), conditions)) == kept


@pytest.mark.parametrize(
    "condition, message",
    [
        ("size=3", "columns method, compute, error, model, samples, run; got 'size=3'"),
        ("samples>=many", ">= compares numbers"),
        ("model>=3", ">= compares numbers"),
    ],
)
def test_a_condition_that_cannot_be_read_is_explained(condition, message):
    with pytest.raises(UserError, match=message):
        where(published(), [condition])


def test_points_of_one_run_and_of_one_setting_share_a_unit():
    assert Point("a", 1, 1, run="s").unit == Point("b", 2, 1, run="s").unit
    assert Point("a", 1, 1, "m", 5).unit == Point("b", 1, 2, "m", 5).unit != Point("a", 2, 1, "m", 5).unit
