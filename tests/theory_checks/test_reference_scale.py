import pytest

from steering import UserError
from steering.settings import Arm, Recipe
from steering.tasks.digits import Digits
from steering.theory_checks.reference_scale import arms_of, main


def test_every_scale_is_an_arm_that_differs_in_nothing_else():
    arms = arms_of(Digits().recipe, "0,0.3,1,auto")
    assert {name: arm.reference_scale for name, arm in arms.items()} == {
        "scale_0": 0,
        "scale_0_3": 0.3,
        "scale_1": 1,
        "scale_auto": "auto",
    }
    paper = Digits().recipe.arms["drrho_kl"]
    assert all(arm.model_copy(update={"reference_scale": 1.0}) == paper for arm in arms.values())


def test_a_task_without_a_steered_arm_has_nothing_to_scale():
    plain = Recipe(steps=1, batch=1, arms={"erm": Arm(subtract=False)}, baseline="erm")
    with pytest.raises(UserError, match="nothing to scale"):
        arms_of(plain, "1")


def test_a_scale_that_is_no_number_is_named():
    with pytest.raises(UserError, match="a scale is a number or auto, got 'much'"):
        arms_of(Digits().recipe, "1,much")


@pytest.mark.slow
def test_the_experiment_compares_all_scales_with_the_papers(tmp_path, capsys):
    main("digits", seeds=2, scales="1,auto", out=tmp_path / "run", sets=["recipe.steps=5"])
    output = capsys.readouterr().out
    assert "scale_auto" in output and "scale_1" in output and (tmp_path / "run" / "report.html").exists()
