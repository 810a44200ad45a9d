"""Arms that distil: the loss is the steered one and the teacher's, whatever the target, and no other is disturbed."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, kl_div

from steering import Losses, UserError
from steering.training.reference_losses import ReferenceLosses

PLAIN = {"rule": "uniform", "subtract": False}


@pytest.fixture
def answering(toy):
    """The toy task, with answers, without chance."""

    class Answering(toy):
        def losses(self, model, batch):
            scores = model(batch["x"])
            return Losses(cross_entropy(scores, batch["y"], reduction="none"), outputs=scores)

    return Answering(noisy=False)


@pytest.fixture
def with_teacher(answering):
    """The same, taught by a model that always says the last class."""

    class Taught(type(answering)):
        def with_teacher(self):
            return Teaching(noisy=False)

    class Teaching(type(answering)):
        def reference(self):
            model = nn.Linear(4, 3)
            model.load_state_dict({"weight": torch.zeros(3, 4), "bias": torch.tensor([0.0, 0.0, 9.0])})
            return model

    return Taught(noisy=False)


def test_the_loss_is_the_steered_one_and_the_weighted_divergence(answering, training):
    plain, taught = training(answering, **PLAIN).step(), training(answering, **PLAIN, distill=0.5).step()
    assert plain["distillation"] is None and taught["distillation"] > 0
    assert taught["loss"] == pytest.approx(plain["loss"] + 0.5 * taught["distillation"], rel=1e-6)


def test_the_reference_is_the_teacher_unless_the_task_names_another(answering, with_teacher, training):
    mine = training(answering, **PLAIN, distill=1.0)
    batch = next(mine.stream)
    mine.stream.load_state_dict(training(answering, **PLAIN).stream.state_dict())
    with torch.no_grad():
        scores, known = mine.model(batch["x"]), answering.reference()(batch["x"])
        by_hand = kl_div(scores.log_softmax(-1), known.log_softmax(-1), reduction="batchmean", log_target=True)
    assert mine.step()["distillation"] == pytest.approx(float(by_hand), rel=1e-5)
    assert mine.reference.teacher is mine.reference
    other = training(with_teacher, **PLAIN, distill=1.0)
    assert other.step()["distillation"] != pytest.approx(float(by_hand), rel=0.1)


def test_what_a_teacher_says_is_what_the_target_comes_to_say(with_teacher, training):
    mine = training(with_teacher, recipe={"steps": 60, "schedule": "constant"}, **PLAIN, distill=100.0)
    for _ in range(60):
        mine.step()
    x = torch.randn(50, 4)
    assert mine.model(x).argmax(-1).eq(2).all()


def test_parts_of_a_batch_learn_what_the_whole_does(answering, training):
    whole, parts = (
        training(answering, recipe={"micro_batch": size}, rule="kl(temperature=0.5)", distill=0.7) for size in (None, 3)
    )
    for _ in range(3):
        assert whole.step()["loss"] == pytest.approx(parts.step()["loss"], rel=1e-5)
    for mine, theirs in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_teachers_answers_are_kept_in_files_of_their_own(with_teacher, training, tmp_path):
    first = training(with_teacher, folder=tmp_path, rule="kl(temperature=0.5)", distill=0.5)
    batch = next(first.stream)
    told = first.reference.teacher(batch).outputs
    again = ReferenceLosses(with_teacher, folder=tmp_path).teacher
    assert (tmp_path / "teacher" / "outputs.bin").exists() and again._model is None
    assert told is not None and torch.equal(again(batch).outputs, told)  # type: ignore[arg-type]
    assert again._model is None, "the teacher was asked twice"


def test_a_task_without_answers_cannot_be_distilled(toy, training):
    with pytest.raises(UserError, match=r"gives no answers to distil \(Losses.outputs\): use a distill of 0"):
        training(toy(), **PLAIN, distill=1.0).step()


def test_activations_that_cannot_be_computed_again_are_told(toy, training):
    with pytest.raises(UserError, match="it has no set_grad_checkpointing"):
        training(toy(), recipe={"grad_checkpointing": True}, **PLAIN)
