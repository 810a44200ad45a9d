"""The problems of the study: how labels are wrong, and how references are bad."""

from typing import Any

import pytest
import torch

from steering import UserError
from steering.references.store import ReferenceLosses
from steering.theory_checks.never_hurts.plan import cells, problem_of
from steering.theory_checks.never_hurts.problem import CLASSES, Problem, mislabelled
from steering.training.training_sets import training_samples


def scores(problem) -> Any:
    return ReferenceLosses(problem)(training_samples(problem), outputs=True)


@pytest.mark.parametrize("kind", ["symmetric", "pair", "instance"])
def test_about_the_share_of_labels_is_wrong_and_the_next_class_alone_in_pairs(kind):
    chance = torch.Generator().manual_seed(0)
    y = torch.randint(5, (4000,), generator=chance)
    made = mislabelled(torch.randn(4000, 8, generator=chance), y, 0.3, kind, 5, chance)
    assert torch.equal(made.wrong, made.y != y) and abs(made.wrong.double().mean() - 0.3) < 0.03
    shifts = (made.y - y)[made.wrong] % 5
    assert set(shifts.tolist()) == ({1} if kind == "pair" else {1, 2, 3, 4})


def test_no_label_is_wrong_without_noise():
    chance = torch.Generator().manual_seed(0)
    y = torch.randint(5, (400,), generator=chance)
    assert not mislabelled(torch.randn(400, 8, generator=chance), y, 0.0, "instance", 5, chance).wrong.any()


def test_instance_noise_hangs_on_the_features():
    chance = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, 8, generator=chance).repeat(200, 1), torch.zeros(4000, dtype=torch.int64)
    made = mislabelled(x, y, 0.4, "instance", 5, chance)
    sample = made.y[made.wrong & (torch.arange(4000) % 20 == 3)].bincount(minlength=5) / 80
    overall = made.y[made.wrong].bincount(minlength=5) / 1600
    assert (sample - overall).abs().max() > 0.1


def test_references_are_bad_as_their_names_say():
    own, sure, shuffled, leaked = (
        scores(Problem(samples=60, reference_kind=kind)) for kind in ("own", "sure", "shuffled", "leaked")
    )
    torch.testing.assert_close(sure.outputs, 3 * own.outputs)
    assert not torch.equal(shuffled.outputs, own.outputs)
    assert torch.equal(shuffled.outputs.sort(0).values, own.outputs.sort(0).values), "the scores of other samples"
    assert leaked.values.mean() < 0.2 < own.values.mean()


def test_a_class_that_the_reference_never_saw_has_a_low_score():
    problem = Problem(reference_samples=5, samples=50)
    missing = sorted(set(range(10)) - set(problem.draw.reference.y.tolist()))
    assert missing and (scores(problem).outputs[:, missing] == -8).all()


def test_the_error_of_imbalanced_classes_is_their_mean():
    problem = Problem("mixture", imbalance=True, noise=0.0, samples=500)
    counts = problem.draw.train.y.bincount(minlength=CLASSES)
    assert counts[0] > 10 * counts[-1]

    class First(torch.nn.Module):
        def forward(self, x):
            return torch.eye(CLASSES)[0].expand(len(x), -1)

    assert problem.evaluate(First())["error"] == pytest.approx(1 - 1 / CLASSES)


def test_digits_have_no_imbalance():
    with pytest.raises(UserError, match="leave imbalance out"):
        Problem(imbalance=True)


def test_every_cell_is_a_problem_of_its_own():
    made = {name: problem_of(cell) for name, cell in cells().items()}
    assert len(set(made.values())) == len(made) >= 30
    kinds = {problem.reference_kind for problem in made.values()}
    assert kinds == {"own", "shuffled", "leaked", "sure"} and {p.model for p in made.values()} == {"linear", "mlp"}
