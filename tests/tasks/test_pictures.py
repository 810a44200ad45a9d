"""Pictures in folders: their order, the contract, and what is refused."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from steering import UserError
from steering.references import LossTable
from steering.references.store import ReferenceLosses
from steering.tasks.pictures import Pictures
from steering.testing import check_task


def values(losses: Any) -> Any:
    return losses.values


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sixty pictures of each of three digits, which are named by words, in files 0.png to 59.png."""
    root = tmp_path_factory.mktemp("pictures")
    images, labels = load_digits(return_X_y=True)
    for name, digit in (("class2", 2), ("class10", 7), ("class1", 1)):
        (root / name).mkdir()
        for number, image in enumerate(images[labels == digit][:60]):
            Image.fromarray((image.reshape(8, 8) * 15).astype(np.uint8)).save(root / name / f"{number}.png")
    (root / "notes.txt").write_text("not a picture")
    return root


def test_classes_and_files_are_in_the_order_of_numbers_and_pixels_from_minus_one_to_one(folder):
    task = Pictures(str(folder))
    assert task.folders == ["class1", "class2", "class10"] and task.size == 180
    assert [path.name for path, number in task._files[1] if number == 1] == [f"{k}.png" for k in range(60)]
    batch = task.load(torch.tensor([0, 61, 179]), torch.Generator())
    assert batch["x"].shape == (3, 3, 32, 32) and batch["x"].abs().max() <= 1
    assert batch["y"].tolist() == [0, 1, 2]


@pytest.mark.slow
def test_it_keeps_the_contract_and_the_reference_has_learned_something(folder):
    task = Pictures(str(folder), pixels=16, channels=4, noise=0.2)
    check_task(task)
    assert task.evaluate(task.reference())["error"] < 0.1


def test_ids_are_positions_and_losses_by_id_are_a_reference(folder, tmp_path):
    path = LossTable(torch.arange(180.0)).save(tmp_path / "losses.safetensors")
    task = Pictures(str(folder), ref=str(path))
    batch = next(task.stream(20, seed=0))
    assert values(ReferenceLosses(task)(batch)).tolist() == batch.ids.tolist()
    assert set(batch.ids.tolist()) <= set(task.split["train"].tolist())
    assert not set(task.split["train"].tolist()) & set(task.split["test"].tolist())


def test_bad_folders_are_one_line(folder, tmp_path):
    (tmp_path / "one" / "a").mkdir(parents=True)
    (tmp_path / "torn" / "a").mkdir(parents=True)
    (tmp_path / "torn" / "b").mkdir(parents=True)
    for name in "ab":
        (tmp_path / "torn" / name / "1.png").write_bytes(b"\x89PNG torn")
    for options, words in [
        ({"data": ""}, "one folder for each class, got ''"),
        ({"data": str(tmp_path / "none")}, "one folder for each class, got"),
        ({"data": str(tmp_path / "one")}, "a has no pictures"),
        ({"data": str(tmp_path / "torn")}, "cannot be read as a picture"),
        ({"data": str(folder), "reference_share": 0.01}, "show only . of 3 classes"),
        ({"data": str(folder), "pixels": 2}, "pixels of at least 8"),
        ({"data": str(folder), "noise": 2}, "a noise within 0 and 1"),
        ({"data": str(folder), "pixels": 100_000}, "use fewer pixels"),
    ]:
        with pytest.raises(UserError, match=words) as error:
            task = Pictures(**options)
            _ = task.draw, task.reference()
        assert "\n" not in str(error.value)
