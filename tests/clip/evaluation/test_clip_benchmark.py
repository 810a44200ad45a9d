"""An export as CLIP_benchmark's own command takes it, where that is installed, and the same numbers from both."""

import json
import os
import subprocess
import sys
from typing import Any

import numpy
import open_clip
import pytest
import torch
from tiny_models import TINY
from webdataset.writer import TarWriter

from steering.clip.data.shards import Shards
from steering.clip.evaluation.embedding import ALONE
from steering.clip.evaluation.suites import PairSet, RetrievalSuite, ZeroShotSuite
from steering.clip.models import WEIGHTS, Towers, export

pytest.importorskip("clip_benchmark")
pytestmark = pytest.mark.slow

COLOURS = ["red", "green", "blue", "yellow", "black", "white"]


@pytest.fixture
def towers() -> Towers:
    torch.manual_seed(0)
    model: torch.nn.Module = open_clip.CLIP(**TINY)
    size = {"size": 32, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    open_clip.set_model_preprocess_cfg(model, size | {"mode": "RGB", "interpolation": "bicubic"})
    tokenizer: Any = open_clip.get_tokenizer("ViT-B-32")
    return Towers(model, TINY, tokenizer, arch="tiny", source="test").eval()


@pytest.fixture
def sets(tars, tmp_path):
    """Twelve pictures, with classes and with two captions each."""
    source = Shards.open(tars(1, 12))
    for kind in ("classes", "captions"):
        (tmp_path / kind / "test").mkdir(parents=True)
        (tmp_path / kind / "test" / "nshards.txt").write_text("1\n")
        with TarWriter(str(tmp_path / kind / "test" / "0.tar")) as tar:
            for number in range(12):
                reported = {"cls": f"{number % 6}", "txt": f"{source.caption(number)}\nagain number {number}"}
                del reported["txt" if kind == "classes" else "cls"]
                tar.write({"__key__": f"{number:03d}", "jpg": source.picture(number)} | reported)
    (tmp_path / "classes" / "classnames.txt").write_text("\n".join(COLOURS) + "\n")
    (tmp_path / "classes" / "zeroshot_classification_templates.txt").write_text("a photo of {c}.\nsome {c}\n")
    (tmp_path / "captions" / "dataset_type.txt").write_text("retrieval\n")
    return tmp_path


def expected(model: list[str], folder, *options: str) -> dict:
    """What CLIP_benchmark's command writes."""
    out = folder / "theirs.json"
    phrases = ["eval", "--model", *model, "--dataset", "wds/set", "--dataset_root", str(folder), "--output", str(out)]
    code = "import sys; from clip_benchmark.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, *phrases, "--no_amp", "--num_workers", "0", *options]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(out.read_text())["metrics"]


def test_retrieval_is_what_clip_benchmark_finds_of_the_export(towers, sets):
    model = [f"local-dir:{export(towers, sets / 'export')}", "--pretrained", "none"]
    result = expected(model, sets / "captions", "--task", "zeroshot_retrieval", "--recall_k", "1", "5")
    pairs = PairSet(Shards.open(f"{sets}/captions/test/0.tar"), lines=True)
    actual = RetrievalSuite(pairs).measure(towers, ALONE)
    for k in (1, 5):
        assert result[f"text_retrieval_recall@{k}"] == pytest.approx(actual[f"i2t_r{k}"].value)
        assert result[f"image_retrieval_recall@{k}"] == pytest.approx(actual[f"t2i_r{k}"].value)


@pytest.mark.skipif(
    tuple(map(int, numpy.__version__.split(".")[:2])) >= (2, 4), reason="its accuracy takes NumPy below 2.4"
)
def test_classification_is_what_clip_benchmark_finds_of_the_export(towers, sets):
    model = [f"local-dir:{export(towers, sets / 'export')}", "--pretrained", "none"]
    result = expected(model, sets / "classes", "--task", "zeroshot_classification")
    actual = ZeroShotSuite(str(sets / "classes")).measure(towers)
    names = {"acc1": "top1", "acc5": "top5", "mean_per_class_recall": "class_recall"}
    assert result == pytest.approx({name: actual[own_task].value for name, own_task in names.items()})
    assert (sets / "export" / WEIGHTS).is_file()
