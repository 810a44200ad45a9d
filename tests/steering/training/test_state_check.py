"""Checkpoints that load and are no state of this training: one line before any training, whatever is wrong."""

import copy
import os
import zipfile

import pytest
import torch

from steering import UserError
from steering.settings import Arm
from steering.training import checkpoint, loop
from steering.training.state_check import check_state

ARM = {"rule": "kl(rho=8)", "gamma": 0.5}
NAN, INFINITY = float("nan"), float("inf")


def at(state, path):
    """The mapping or list that holds the last name of a dotted path, and that name."""
    *names, last = path.split("/")
    for name in names:
        state = state[int(name)] if isinstance(state, list) else state[name]
    return state, int(last) if isinstance(state, list) else last


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The state of a training after some steps, with everything in it that a checkpoint can have."""
    from tests.steering.training.conftest import begin

    training = begin(recipe={"ema": 0.9}, **ARM)
    for _ in range(4):
        training.step()
    return training.state_dict()


@pytest.fixture
def fresh(make_training):
    return make_training(recipe={"ema": 0.9}, **ARM)


WRONG = {
    "done": [-1, 10**12, 13, 3, NAN, 4.0, True, None, "4", [4]],
    "format": [None],
    "model": [{}, None, [], 3],
    "model/0.weight": [None, 1.0, torch.zeros(8, 5), torch.zeros(8, 4).half(), torch.full((8, 4), NAN)],
    "model/1.num_batches_tracked": [torch.tensor(4.0)],
    "optimizer": [{}, None, [], {"state": {}}],
    "optimizer/param_groups": [[], None, [{}], {}],
    "optimizer/param_groups/0/betas": [(0.5, 0.999), None, NAN],
    "optimizer/param_groups/0/weight_decay": [0.5, NAN, "0"],
    "optimizer/param_groups/0/params": [[], ["0.bias"], None, 3],
    "optimizer/state": [None, [], {"0.weight": None}, {"nobody": {"exp_avg": torch.zeros(2)}}],
    "optimizer/state/0.weight/step": [torch.tensor(NAN), torch.tensor(-1.0), torch.tensor(1e12), None, torch.zeros(2)],
    "optimizer/state/0.weight/exp_avg": [
        torch.zeros(4, 8),
        torch.zeros(8, 4).double(),
        torch.full((8, 4), INFINITY),
        1,
    ],
    "optimizer/state/0.weight/exp_avg_sq": [torch.full((8, 4), -1.0), torch.full((8, 4), NAN)],
    "steerer": [None, {}, []],
    "steerer/memory": [None, {}],
    "steerer/memory/size": [-1, 10**12, None],
    "steerer/memory/gamma": [NAN, 0.0, 7.0, None],
    "steerer/memory/table": [torch.zeros(1), torch.zeros(1, 9), torch.zeros(1, 1, dtype=torch.int64), 3.0, {}],
    "steerer/variance/values": [torch.zeros(2), 3.0, []],
    "steerer/scale": [torch.zeros(2), None, 1.0],
    "steerer/effective_sample_size": [torch.zeros(3), None],
    "steerer/group_weights": [{"values": torch.ones(3)}],
    "stream": [None, {}, []],
    "stream/position": [-1, 5, 10**12, None, 4.0],
    "stream/seed": [0],
    "counters": [None, {}, []],
    "counters/samples": [-1, NAN, "many", None],
    "counters/facts": [None, [], {"odd": NAN}],
    "counters/weight": [NAN, -1.0],
    "scaler": [None, 3],
    "average": [None, {}],
    "average/module.0.weight": [torch.zeros(8, 5), torch.full((8, 4), NAN)],
    "reference": [None, {"n_averaged": torch.tensor(1)}],
    "of": [{"task": "Blobs"}, {}],
}


@pytest.mark.parametrize("path", WRONG)
def test_a_state_that_is_wrong_somewhere_is_refused_before_it_is_used(fresh, good, tmp_path, path):
    for value in WRONG[path]:
        state = copy.deepcopy(good)  # of which one part is made wrong
        holder, name = at(state, path)
        holder[name] = value
        checkpoint.save(tmp_path / "c.pt", state)
        with pytest.raises(UserError, match=r"[Dd]elete it to start|delete the checkpoint") as caught:
            loop.run(fresh, tmp_path / "c.pt", record=lambda _: pytest.fail("it trained"))
        message = str(caught.value)
        assert "\n" not in message and len(message) < 500, message
        assert fresh.done == 0


@pytest.mark.parametrize("part", ["done", "model", "optimizer", "steerer", "stream", "counters", "scaler", "average"])
def test_a_state_without_one_of_its_parts_is_refused(fresh, good, tmp_path, part):
    checkpoint.save(tmp_path / "c.pt", {name: value for name, value in good.items() if name != part})
    with pytest.raises(UserError, match=r"[Dd]elete it"):
        loop.run(fresh, tmp_path / "c.pt", record=lambda _: pytest.fail("it trained"))


def test_a_good_state_and_one_of_before_checkpoints_said_what_they_are_of_fit(fresh, good):
    check_state(good, fresh)
    check_state({name: value for name, value in good.items() if name != "of"}, fresh)


@pytest.mark.parametrize(
    "arm", [{"rule": "kl(rho=9)", "gamma": 0.5}, {"rule": "kl(rho=8)"}, {**ARM, "distill": 1.0}], ids=str
)
def test_a_checkpoint_of_another_arm_is_refused_by_name(make_training, good, tmp_path, arm):
    checkpoint.save(tmp_path / "c.pt", good)
    differing = next(name for name, value in Arm(**ARM) if getattr(Arm(**arm), name) != value)
    with pytest.raises(UserError, match=f"it is of {differing} "):
        loop.run(make_training(recipe={"ema": 0.9}, **arm), tmp_path / "c.pt", record=lambda _: None)


def test_a_checkpoint_of_another_task_is_refused_by_name(make_training, toy, good, tmp_path):
    class Other(toy):
        pass

    checkpoint.save(tmp_path / "c.pt", good)
    with pytest.raises(UserError, match="it is of task Toy, not Other"):
        loop.run(make_training(Other(), recipe={"ema": 0.9}, **ARM), tmp_path / "c.pt", record=lambda _: None)


def no_files(folder):
    os.mkfifo(folder / "fifo.pt")
    (folder / "zero.pt").symlink_to("/dev/zero")
    (folder / "full.pt").symlink_to("/dev/full")
    (folder / "folder.pt").mkdir()
    (folder / "loop.pt").symlink_to(folder / "loop.pt")
    torch.save([1, 2], folder / "list.pt")
    torch.save(torch.zeros(3), folder / "tensor.pt")
    torch.save({}, folder / "empty.pt")
    torch.save({"done": "3"}, folder / "text.pt")
    torch.save({"done": 3}, folder / "old.pt", _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(folder / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**6))
    return sorted(path for path in folder.iterdir() if path.name != "loop.pt")


def test_what_is_no_checkpoint_at_all_is_refused_in_one_line_and_nothing_is_waited_for(fresh, tmp_path):
    for path in no_files(tmp_path):
        with pytest.raises(UserError) as caught:
            loop.run(fresh, path, record=lambda _: pytest.fail("it trained"))
        message = str(caught.value)
        assert "\n" not in message and str(path) in message and "delete it" in message, message
