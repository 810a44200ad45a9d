import pytest
import torch

from steering import DualMemory, UserError


def ids(*places):
    return torch.tensor(places)


def read(duals: DualMemory, *places: int) -> torch.Tensor:
    """What is remembered at the places, ``[places, width]``."""
    found = duals.read(ids(*places))
    assert found is not None
    return found


def test_nothing_is_remembered_before_the_first_write():
    assert DualMemory(3, gamma=0.5).read(ids(0, 1)) is None


def test_what_was_written_is_read_back_and_the_rest_is_nan():
    duals = DualMemory(3, gamma=0.5)
    duals.write(ids(2, 0), torch.tensor([[1.0, 10.0], [2.0, 20.0]]))
    found = read(duals, 0, 1, 2)
    assert found[[0, 2]].tolist() == [[2, 20], [1, 10]]
    assert found[1].isnan().all()


def test_a_second_write_replaces_the_first_and_spares_the_others():
    duals = DualMemory(2, gamma=0.5)
    duals.write(ids(0, 1), torch.tensor([[1.0], [2.0]]))
    duals.write(ids(0), torch.tensor([[5.0]]))
    assert read(duals, 0, 1)[:, 0].tolist() == [5, 2]


def test_an_id_that_comes_twice_keeps_the_mean():
    """(1 + 3) / 2 = 2."""
    duals = DualMemory(2, gamma=0.5)
    duals.write(ids(1, 0, 1), torch.tensor([[1.0], [7.0], [3.0]]))
    assert read(duals, 0, 1)[:, 0].tolist() == [7, 2]


def test_levels_keep_the_precision_they_came_with():
    duals = DualMemory(1, gamma=0.5)
    duals.write(ids(0), torch.tensor([[0.1]], dtype=torch.float64))
    assert read(duals, 0).item() == 0.1


@pytest.mark.parametrize("gamma", [0.0, -0.1, 1.1, float("nan")])
def test_a_wrong_rate_is_explained_at_once_and_later(gamma):
    with pytest.raises(UserError, match="the gamma of a moving average lies above 0 and at most 1, got"):
        DualMemory(gamma=gamma)
    duals = DualMemory(gamma=0.5)
    with pytest.raises(UserError, match="the gamma of a moving average"):
        duals.gamma = gamma
    assert duals.gamma == 0.5


def test_a_memory_of_nothing_is_explained():
    with pytest.raises(UserError, match="DualMemory needs a size of at least 1, got 0"):
        DualMemory(0)


@pytest.mark.parametrize("wrong", [3, -1])
def test_an_id_outside_is_explained_by_write_and_by_read(wrong):
    duals = DualMemory(3, gamma=0.5)
    with pytest.raises(UserError, match=f"id {wrong} does not fit a memory of 3 duals: give DualMemory"):
        duals.write(ids(0, wrong), torch.zeros(2, 1))
    duals.write(ids(0), torch.zeros(1, 1))
    with pytest.raises(UserError, match=f"id {wrong} does not fit a memory of 3 duals"):
        read(duals, wrong)


def test_a_memory_is_saved_and_restored_and_then_lives_its_own_life(tmp_path):
    duals = DualMemory(3, gamma=0.5)
    duals.write(ids(1), torch.tensor([[4.0]]))
    torch.save(duals.state_dict(), tmp_path / "duals.pt")
    again = DualMemory(3, gamma=1.0)
    again.load_state_dict(torch.load(tmp_path / "duals.pt", weights_only=True))
    assert again.gamma == 0.5
    assert read(again, 0, 1).nan_to_num(-1)[:, 0].tolist() == [-1, 4]
    twin = DualMemory(3)
    twin.load_state_dict(duals.state_dict())
    twin.write(ids(1), torch.tensor([[9.0]]))
    assert read(duals, 1).item() == 4


def test_an_unused_memory_is_saved_and_restored_too():
    again = DualMemory(3)
    again.load_state_dict(DualMemory(3, gamma=0.25).state_dict())
    assert again.gamma == 0.25 and again.read(ids(0)) is None


def test_a_checkpoint_of_a_larger_data_set_is_refused():
    with pytest.raises(UserError, match="the checkpoint remembers 4 duals, this run 3: was it made"):
        DualMemory(3).load_state_dict(DualMemory(4).state_dict())


def test_a_memory_survives_the_growth_of_the_data():
    small, grown = DualMemory(3, gamma=0.5), DualMemory(5)
    small.write(torch.tensor([0, 2]), torch.tensor([[1.0], [2.0]]))
    grown.load_state_dict(small.state_dict())
    grown.write(torch.tensor([4]), torch.tensor([[3.0]]))
    found = grown.read(torch.arange(5))
    assert found is not None and found.nan_to_num(-1)[:, 0].tolist() == [1, -1, 2, -1, 3] and grown.gamma == 0.5
