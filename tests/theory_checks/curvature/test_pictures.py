"""Networks from local files and pictures in folders, real ones and damaged ones."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from steering.curvature import replace_relus
from steering.errors import UserError
from steering.theory_checks.curvature import pictures

timm = pytest.importorskip("timm")
models = pytest.importorskip("torchvision.models")


def test_pictures_are_bytes_with_the_classes_of_their_folders(folder):
    samples, names = pictures.load_pictures(folder, 32)
    assert names == ["class0", "class1"]
    assert samples.x.dtype == torch.uint8 and samples.x.shape == (16, 3, 32, 32)
    assert samples.y.tolist() == [0] * 8 + [1] * 8
    assert samples.x[:8, 0].float().mean() > 100 > samples.x[:8, 1].float().mean()


def test_every_class_is_in_every_split_and_no_picture_in_two(folder):
    samples, _ = pictures.load_pictures(folder, 16)
    parts = pictures.splits(samples, 3)
    assert [len(part.y) for part in parts] == [8, 4, 4]
    assert all(part.y.bincount().tolist() == [len(part.y) // 2] * 2 for part in parts)
    assert len(torch.cat([part.x for part in parts]).flatten(1).unique(dim=0)) == 16


@pytest.mark.parametrize(("name", "make", "ending"), [
    ("resnet18", lambda: models.resnet18(weights=None, num_classes=7), "pt"),
    ("timm/resnet10t", lambda: timm.create_model("resnet10t", num_classes=7), "safetensors"),
])  # fmt: skip
@pytest.mark.slow
def test_a_network_comes_back_from_its_file(tmp_path, name, make, ending):
    network, path = make().eval(), tmp_path / f"weights.{ending}"
    save_file(network.state_dict(), path) if ending == "safetensors" else torch.save(network.state_dict(), path)
    loaded = pictures.load_network(name, path)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(x), network(x))
    body = pictures.Normalised(loaded).eval()
    assert body(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape == (2, 7)
    assert not replace_relus(body, 0.9, example=(torch.zeros(1, 3, 32, 32, dtype=torch.uint8),)).missed


class Harm:
    def __reduce__(self):
        return (Path.touch, (Path("harmed"),))


def test_a_pickle_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.pt").write_bytes(pickle.dumps({"conv1.weight": Harm()}))
    with pytest.raises(UserError, match="no plain tensors"):
        pictures.load_network("resnet18", tmp_path / "bad.pt")
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(("name", "message"), [("resnet81", "did you mean"), ("nothing like it", "resnet18, say")])
def test_unknown_networks_are_named(tmp_path, name, message):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=message):
        pictures.load_network(name, tmp_path / "w.pt")


def test_weights_that_are_missing_or_do_not_fit_are_named(tmp_path):
    with pytest.raises(UserError, match="no weights at"):
        pictures.load_network("resnet18", tmp_path / "none.pt")
    with pytest.raises(UserError, match="no weights at"):
        pictures.load_network("resnet18", tmp_path / "none.safetensors")
    (tmp_path / "w.safetensors").write_bytes(b"123456789")
    with pytest.raises(UserError, match="cannot be read"):
        pictures.load_network("resnet18", tmp_path / "w.safetensors")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(UserError, match="do not fit resnet18"):
        pictures.load_network("resnet18", tmp_path / "w.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match="no state dict"):
        pictures.load_network("resnet18", tmp_path / "list.pt")


def test_folders_without_classes_and_broken_pictures_are_named(tmp_path, paint):
    with pytest.raises(UserError, match="folder of pictures for each class"):
        pictures.load_pictures(tmp_path / "none", 32)
    paint(tmp_path / "one", classes=1)
    with pytest.raises(UserError, match="two or more"):
        pictures.load_pictures(tmp_path / "one", 32)
    paint(tmp_path / "few", number=3)
    with pytest.raises(UserError, match="too few in class0, class1"):
        pictures.load_pictures(tmp_path / "few", 32)
    broken = paint(tmp_path / "broken") / "class1" / "3.png"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(UserError, match=r"class1/3.png cannot be read"):
        pictures.load_pictures(tmp_path / "broken", 32)
