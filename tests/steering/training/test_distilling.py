"""Arms that distil: the loss is the steered one and the teacher's, whatever the target, and no other is disturbed."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, kl_div

from steering import Losses, UserError
from steering.references.store import ReferenceLosses

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
    """The same, with a teacher that always answers the last class."""

    class WithTeacher(type(answering)):
        def with_teacher(self):
            return Teaching(noisy=False)

    class Teaching(type(answering)):
        def reference(self):
            model = nn.Linear(4, 3)
            model.load_state_dict({"weight": torch.zeros(3, 4), "bias": torch.tensor([0.0, 0.0, 9.0])})
            return model

    return WithTeacher(noisy=False)


def test_the_loss_is_the_steered_one_and_the_weighted_divergence(answering, make_training):
    plain, distilled = make_training(answering, **PLAIN).step(), make_training(answering, **PLAIN, distill=0.5).step()
    assert plain["distillation"] is None and distilled["distillation"] > 0
    assert distilled["loss"] == pytest.approx(plain["loss"] + 0.5 * distilled["distillation"], rel=1e-6)


def test_the_reference_is_the_teacher_unless_the_task_names_another(answering, with_teacher, make_training):
    training = make_training(answering, **PLAIN, distill=1.0)
    batch = next(training.stream)
    training.stream.load_state_dict(make_training(answering, **PLAIN).stream.state_dict())
    with torch.no_grad():
        scores, teacher = training.model(batch["x"]), answering.reference()(batch["x"])
        by_hand = kl_div(scores.log_softmax(-1), teacher.log_softmax(-1), reduction="batchmean", log_target=True)
    assert training.step()["distillation"] == pytest.approx(float(by_hand), rel=1e-5)
    assert training.reference.teacher is training.reference
    other = make_training(with_teacher, **PLAIN, distill=1.0)
    assert other.step()["distillation"] != pytest.approx(float(by_hand), rel=0.1)


def test_what_a_teacher_says_is_what_the_target_comes_to_say(with_teacher, make_training):
    training = make_training(with_teacher, recipe={"steps": 60, "schedule": "constant"}, **PLAIN, distill=100.0)
    for _ in range(60):
        training.step()
    x = torch.randn(50, 4)
    assert training.model(x).argmax(-1).eq(2).all()


def test_parts_of_a_batch_learn_what_one_batch_does(answering, make_training):
    one, parts = (
        make_training(answering, recipe={"micro_batch": size}, rule="kl(temperature=0.5)", distill=0.7)
        for size in (None, 3)
    )
    for _ in range(3):
        assert one.step()["loss"] == pytest.approx(parts.step()["loss"], rel=1e-5)
    torch.testing.assert_close(parts.model.state_dict(), one.model.state_dict())


def test_a_teachers_answers_are_kept_in_files_of_their_own(with_teacher, make_training, tmp_path, monkeypatch):
    first = make_training(with_teacher, folder=tmp_path, rule="kl(temperature=0.5)", distill=0.5)
    batch = next(first.stream)
    outputs = first.reference.teacher(batch, outputs=True).outputs
    again = ReferenceLosses(with_teacher, folder=tmp_path).teacher
    assert (tmp_path / "teacher" / "outputs" / "entries.bin").exists()
    monkeypatch.setattr(type(again.task), "reference", None)  # the teacher is not loaded a second time
    assert outputs is not None and torch.equal(again(batch, outputs=True).outputs, outputs)  # type: ignore[arg-type]


def test_a_task_without_answers_cannot_be_distilled(toy, make_training):
    with pytest.raises(UserError, match=r"gives no answers to distil \(Losses.outputs\): use a distill of 0"):
        make_training(toy(), **PLAIN, distill=1.0).step()


def test_a_target_that_cannot_compute_activations_again_is_refused(toy, make_training):
    with pytest.raises(UserError, match="it has no set_grad_checkpointing"):
        make_training(toy(), recipe={"grad_checkpointing": True}, **PLAIN)
