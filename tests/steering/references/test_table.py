"""Losses by id, in memory and in files: every id has its own, or an error names it."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from steering import Batch, Losses, UserError
from steering.references import LossTable, as_reference

VALUES = [0.5, 2.0, 1.0]


def values(losses: Losses) -> list:
    assert isinstance(losses.values, torch.Tensor)
    return losses.values.tolist()


def test_losses_are_looked_up_by_id_whatever_the_order():
    assert LossTable(VALUES).losses([2, 0, 0]).tolist() == [1.0, 0.5, 0.5]
    table = LossTable(np.array(VALUES), ids=[30, 10, 20])
    assert table.losses(torch.tensor([10, 20, 30])).tolist() == [2.0, 1.0, 0.5]
    assert values(table(Batch(torch.tensor([20]), {}))) == [1.0]
    assert LossTable(torch.tensor([[1.0], [4.0]])).losses([1]).tolist() == [4.0]  # a column is a loss for each sample


def test_columns_that_are_nan_have_no_loss_and_a_mask():
    losses = LossTable([[1.0, 2.0], [3.0, np.nan]]).look_up([1, 0])
    assert values(losses) == [[3.0, 0.0], [1.0, 2.0]]
    assert losses.mask is not None and losses.mask.tolist() == [[True, False], [True, True]]
    assert LossTable([[1.0, 2.0], [3.0, 4.0]]).look_up([0]).mask is None


def test_tokens_of_any_number_are_flat_with_their_rows():
    table = LossTable([0.0, 1.0, 2.0, 3.0], ids=[7, 8, 9], offsets=[0, 3, 3, 4])
    losses = table.look_up([9, 8, 7])
    assert values(losses) == [3.0, 0.0, 1.0, 2.0]
    assert losses.rows is not None and losses.rows.tolist() == [0, 2, 2, 2]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LossTable(VALUES, ids=[1, 2, 1]), "of ids 1 are there twice"),
        (lambda: LossTable(VALUES, ids=[1, 2]), "each of 3 samples has an id and a loss, got 2 ids"),
        (lambda: LossTable(VALUES, ids=[0.0, 1.0, 2.0]), "ids are \\[size\\] integers, got \\[3\\] torch.float64"),
        (lambda: LossTable(VALUES, offsets=[0, 2]), "offsets rise from 0 to 3, the number of flat"),
        (lambda: LossTable(VALUES, offsets=[0, 2, 1, 3]), "offsets rise from 0 to 3"),
        (
            lambda: LossTable(VALUES, offsets=np.zeros(0, int)),
            "offsets rise from 0 to 3, the number of flat losses, got",
        ),
        (lambda: LossTable([1e300, 1.0]), "losses are numbers of float32, which ends at 3.4e38"),
        (lambda: LossTable(np.array([1j, 2.0])), "losses are .* got \\[2\\] torch.complex128"),
        (lambda: LossTable([True, False]), "losses are .* got \\[2\\] torch.bool"),
        (lambda: LossTable([True, False], ids=[True, False]), "are .* got \\[2\\] torch.bool"),
        (lambda: LossTable(np.array(["2020-01-01"], "datetime64[D]")), "got a ndarray that is no array of numbers"),
        (lambda: LossTable(np.array([0.5, None], object)), "got a ndarray that is no array of numbers"),
        (lambda: LossTable([]), "each of 0 samples has an id and a loss"),
        (lambda: LossTable(0.5), "losses are \\[size\\] or \\[size, columns\\], .* got \\[\\]"),
        (lambda: LossTable(["a", "b"]), "got a list that is no array of numbers"),
        (lambda: LossTable([[1.0], [1.0, 2.0]]), "got a list that is no array of numbers"),
        (lambda: LossTable(VALUES).losses([5, 0, 4, 3, 9]), "of ids 5, 4, 3 and 1 more are not there: every sample"),
        (lambda: LossTable([1.0, np.nan]).losses([0, 1]), "of ids 1 are NaN"),
        (lambda: LossTable([[1.0, 1.0], [np.nan] * 2]).losses([1, 0]), "of ids 1 are NaN"),
        (lambda: LossTable([1.0, 1.0, np.nan], offsets=[0, 1, 3]).losses([0, 1]), "of ids 1 are NaN"),
    ],
)
def test_what_is_no_loss_of_its_own_for_every_sample_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_losses_of_other_data_are_refused():
    task = SimpleNamespace(size=3)
    assert values(as_reference(VALUES, task)(Batch(torch.tensor([2]), {}))) == [1.0]  # type: ignore[arg-type]
    for losses, message in (
        ([0.5] * 4, "got 4 losses for 3 samples: give the ids that they are of"),
        (LossTable(VALUES, ids=[2, 3, 4]), "of ids 3, 4 are of other data, whose ids go beyond 2"),
        (LossTable(VALUES, provenance={"task": "digits"}), "these losses are of digits, got the task namespace"),
    ):
        with pytest.raises(UserError, match=message):
            as_reference(losses, task)  # type: ignore[arg-type]


def test_a_saved_table_is_read_as_it_was(tmp_path):
    table = LossTable([0.0, 1.0, 2.0], ids=[7, 8], offsets=[0, 3, 3], provenance={"task": "mine", "loss": ["nll", 1]})
    again = LossTable.load(table.save(tmp_path / "new" / "losses.safetensors"))
    assert again.provenance == table.provenance
    assert values(again.look_up([8, 7])) == [0.0, 1.0, 2.0]


def test_losses_are_read_from_common_formats(tmp_path):
    np.savez(tmp_path / "losses.npz", losses=np.array(VALUES), ids=np.array([3, 1, 2]))
    np.save(tmp_path / "losses.npy", np.array(VALUES, np.float16))
    save_file({"losses": torch.tensor(VALUES, dtype=torch.bfloat16)}, tmp_path / "losses.safetensors")
    assert LossTable.load(tmp_path / "losses.npz").losses([1, 3]).tolist() == [2.0, 0.5]
    for name in ("losses.npy", "losses.safetensors"):
        assert LossTable.load(str(tmp_path / name)).losses([1, 2]).tolist() == [2.0, 1.0]


def test_parquet_columns_may_be_lists_of_tokens(tmp_path):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.table({"losses": VALUES, "ids": [3, 1, 2]}), tmp_path / "flat.parquet", row_group_size=2)
    assert LossTable.load(tmp_path / "flat.parquet").losses([1, 3]).tolist() == [2.0, 0.5]
    parquet.write_table(pa.table({"losses": [[0.0, 1.0], [], [2.0]], "ids": [3, 1, 2]}), tmp_path / "lists.parquet")
    losses = LossTable.load(tmp_path / "lists.parquet").look_up([2, 1, 3])
    assert values(losses) == [2.0, 0.0, 1.0]
    assert losses.rows is not None and losses.rows.tolist() == [0, 2, 2]


def test_files_that_are_no_losses_are_refused_in_one_line(tmp_path, monkeypatch):
    np.savez(tmp_path / "other.npz", loss=np.array(VALUES))
    np.savez(tmp_path / "code.npz", losses=np.array([print], object))
    (tmp_path / "torn.npz").write_bytes((tmp_path / "other.npz").read_bytes()[:100])
    LossTable(VALUES).save(tmp_path / "flipped.safetensors")
    content = bytearray((tmp_path / "flipped.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "flipped.safetensors").write_bytes(content)
    (tmp_path / "losses.csv").touch()
    os.mkfifo(tmp_path / "fifo.npz")
    (tmp_path / "zero.npy").symlink_to("/dev/zero")
    (tmp_path / "folder.safetensors").mkdir()
    header = "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }"
    (tmp_path / "huge.npy").write_bytes(b"\x93NUMPY\x01\x00\x76\x00" + f"{header:<117}\n".encode() + bytes(64))
    claim = b'{"losses":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'
    (tmp_path / "huge.safetensors").write_bytes(len(claim).to_bytes(8, "little") + claim + bytes(64))
    (tmp_path / "long.safetensors").write_bytes((10**12).to_bytes(8, "little") + claim)
    save_file({"losses": torch.tensor(VALUES)}, tmp_path / "deep.safetensors", {"provenance": "[" * 100_000})
    save_file({"losses": torch.tensor(VALUES)}, tmp_path / "list.safetensors", {"provenance": "[1]"})
    np.savez(tmp_path / "twice.npz", losses=np.array(VALUES), ids=np.array([1, 1, 2]))
    np.savez(tmp_path / "text.npz", losses=np.array(["a", "b"]))
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    for name, message in {
        "fifo.npz": "it is no ordinary file",
        "zero.npy": "it is no ordinary file",
        "folder.safetensors": "it is no ordinary file",
        "huge.npy": "",
        "huge.safetensors": "",
        "long.safetensors": "",
        "deep.safetensors": "",
        "list.safetensors": "its provenance is a list, not a mapping",
        "twice.npz": "of ids 1 are there twice",
        "text.npz": "that is no array of numbers",
        "none.npz": "No such file or directory",
        "other.npz": "has no losses, but loss",
        "code.npz": "Object arrays cannot be loaded when allow_pickle=False",
        "torn.npz": "",
        "flipped.safetensors": "its checksum is wrong",
        "losses.csv": "losses are read from .safetensors, .npz, .npy, .parquet",
    }.items():
        with pytest.raises(UserError, match=rf"^\S+{name} cannot be read as losses: [^\n]*{message}[^\n]*$"):
            LossTable.load(tmp_path / name)
    with pytest.raises(UserError, match=r"^\S+ needs pyarrow: pip install pyarrow, or save the losses as .npz$"):
        LossTable.load(tmp_path / "losses.parquet")


def test_a_reference_can_be_scored_into_a_table():
    batches = [Batch(torch.tensor(ids), {}) for ids in ([4, 1], [3])]
    assert LossTable.scored(lambda batch: Losses(batch.ids / 2), batches).losses([1, 3, 4]).tolist() == [0.5, 1.5, 2.0]

    def tokens(batch: Batch) -> Losses:
        rows = torch.arange(len(batch)).repeat_interleave(batch.ids)
        return Losses(batch.ids[rows] / 2, rows=rows)

    table = LossTable.scored(tokens, batches, loss="half the id")
    assert table.losses([1, 3]).tolist() == [0.5, 1.5, 1.5, 1.5] and table.provenance == {"loss": "half the id"}


def test_padding_of_a_table_is_no_loss_of_zero():
    nan = torch.nan
    table = LossTable(torch.tensor([[1.0, nan], [2.0, 3.0], [torch.inf, 1.0]]))
    losses = table.losses([0, 1, 2])
    assert torch.equal(losses.nan_to_num(-1, torch.inf), torch.tensor([[1.0, -1], [2, 3], [torch.inf, 1]]))
    assert table.look_up([1]).mask is not None, "every batch of a padded table has a mask"


def test_a_table_scored_with_a_mask_has_nothing_under_it():
    def reference(batch):
        return Losses(torch.tensor([[1.0, 777.0], [1.0, 1.0]]), mask=torch.tensor([[True, False], [True, True]]))

    table = LossTable.scored(reference, [Batch(torch.tensor([0, 1]), {})])
    assert table.losses([0]).isnan().tolist() == [[False, True]]
