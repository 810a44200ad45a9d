"""``steer eval``: runs and models by name, on pairs and on classes."""

import json
import math
from pathlib import Path

import pytest
import torch
from webdataset.writer import TarWriter

from steering import UserError
from steering.clip.data.shards import Shards
from steering.clip.emoji_data import BUNDLE
from steering.clip.evaluation.command import run
from steering.clip.evaluation.embedding import Work
from steering.clip.evaluation.suites import EmojiSuite, measure
from steering.clip.models import EMOJI, build, export
from steering.clip.reference.load import load_reference
from steering.clip.task import Clip
from steering.runs import config as configs

USUAL = {
    "data": None,
    "zeroshot": None,
    "arms": None,
    "out": None,
    "device": "cpu",
    "work": Work(shared=True, block=64),
    "caption_field": None,
    "bad_share": 0.01,
}


def result(target, tmp_path, **options) -> dict:
    """What the command writes."""
    run(str(target), **(USUAL | {"out": tmp_path / "found.json"} | options))
    return json.loads((tmp_path / "found.json").read_text())


@pytest.fixture
def run_folder(tars, tmp_path) -> Path:
    """A run as ``steer run`` leaves it: two arms with two seeds each, one of them not finished."""
    folder = tmp_path / "run"
    folder.mkdir()
    data = tars(1, name="trained")
    options = {"data": data, "val": data, "model": EMOJI, "ref": f"local-dir:{BUNDLE}"}
    config, _ = configs.resolve("clip", typed={"options": options})
    (folder / "config.yaml").write_text(configs.text(config))
    for arm, seed in (("unsteered", 0), ("unsteered", 1), ("drrho_clip", 0)):
        torch.manual_seed(seed)
        export(build(EMOJI), folder / "arms" / arm / f"seed{seed}" / "export")
    return folder


def test_every_arm_and_seed_of_a_run_is_evaluated_on_what_the_run_was(run_folder, tmp_path, capsys):
    report = result(run_folder, tmp_path)
    names = [(model["name"], model["seed"]) for model in report["models"]]
    assert sorted(names) == [("drrho_clip", 0), ("unsteered", 0), ("unsteered", 1)]
    config = configs.load(run_folder / "config.yaml")
    task = Clip(**config.options)
    for model in report["models"]:
        needed = task.evaluate(load_reference(model["ref"]))
        assert {name: share["value"] for name, share in model["metrics"].items()} == needed
    values = [model["metrics"]["i2t_r1"]["value"] for model in report["models"] if model["name"] == "unsteered"]
    assert report["means"] == {"unsteered": report["means"]["unsteered"]}
    assert report["means"]["unsteered"]["i2t_r1"]["value"] == pytest.approx(sum(values) / 2)
    shown = capsys.readouterr().out
    assert "unsteered, mean of 2" in shown and "image to text R@10" in shown and "chance" in shown


def test_arms_can_be_chosen(run_folder, tmp_path):
    report = result(run_folder, tmp_path, arms="drrho_clip")
    assert [model["name"] for model in report["models"]] == ["drrho_clip"]


def test_a_model_is_evaluated_on_what_is_named(tars, tmp_path):
    shards = Shards.open(tars(1))
    for number in range(8):
        path = tmp_path / "kinds" / ("odd" if number % 2 else "even") / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(shards.picture(number) if number else b"no picture")
    report = result(f"local-dir:{BUNDLE}", tmp_path, data=tars(1, name="val"), zeroshot=str(tmp_path / "kinds"))
    metrics = report["models"][0]["metrics"]
    assert metrics["i2t_r10"]["trials"] == 20 and metrics["top1"]["trials"] == 7
    assert report["skipped"] == {"not a picture": 1}
    assert report["ranks"] == 1 and report["models"][0]["seed"] is None and report["means"] == {}


def test_the_same_pictures_score_the_same_as_a_folder_as_a_tar_and_while_a_run_trains(tars, tmp_path):
    """Twenty pictures with five captions each, a line each, as retrieval benchmarks lay them out."""
    source = Shards.open(tars(1))
    (tmp_path / "set[1]" / "test").mkdir(parents=True)
    tar_file = tmp_path / "set[1]" / "test" / "0.tar"
    with TarWriter(str(tar_file)) as tar:
        for number in range(20):
            text = "\n".join(f"{source.caption(number)} {ending}" for ending in "abcde")
            tar.write({"__key__": f"{number}", "jpg": source.picture(number), "txt": text})
    sources = [tmp_path / "set[1]", tar_file, f"{tmp_path}/set[[]1]/test/*.tar"]

    def found(source) -> dict:
        report = result(f"local-dir:{BUNDLE}", tmp_path, data=str(source))
        return {name: share["value"] for name, share in report["models"][0]["metrics"].items()} | {
            f"{name}, chance": metric["chance"] for name, metric in report["metrics"].items()
        }

    assert found(sources[0]) == found(sources[1]) == found(sources[2])
    assert found(tar_file)["i2t_r1, chance"] == pytest.approx(1 / 20)
    (tmp_path / "set[1]" / "dataset_type.txt").write_text("retrieval\n")
    of_lines = found(sources[0])
    assert of_lines == found(sources[1]) == found(sources[2]) != found(tars(1, name="other"))
    assert of_lines["i2t_r1, chance"] == pytest.approx(5 / 100)
    assert of_lines["i2t_r5, chance"] == pytest.approx(1 - math.comb(95, 5) / math.comb(100, 5))
    assert of_lines["t2i_r5, chance"] == 5 / 20
    for source in sources:
        task = Clip(data=tars(1, name=f"data{sources.index(source)}"), val=str(source))
        metrics = measure(load_reference(f"local-dir:{BUNDLE}"), task.suites)
        chances = {f"{name}, chance": metric.chance for name, metric in task.metrics.items()}
        assert {name: share.value for name, share in metrics.items()} | chances == of_lines
    tars(1, name="plain")
    with pytest.raises(UserError, match="lines are captions in some of"):
        found(f"{tar_file}::{tmp_path}/plain/000.tar")


@pytest.mark.slow
def test_a_model_alone_is_evaluated_on_the_bundled_pairs(tmp_path):
    metrics = result(f"local-dir:{BUNDLE}", tmp_path)["models"][0]["metrics"]
    needed = EmojiSuite().measure(load_reference(f"local-dir:{BUNDLE}"))
    assert {name: share["value"] for name, share in metrics.items()} == {k: v.value for k, v in needed.items()}


def test_mistakes_are_told_in_one_line(run_folder, tmp_path):
    def report(target, **options) -> str:
        with pytest.raises(UserError) as error:
            run(str(target), **(USUAL | options))
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "has no exported arm 'unsteerd'; did you mean unsteered?" in report(run_folder, arms="unsteerd")
    assert "has no exported arm ''" in report(run_folder, arms="")
    assert "--arms chooses among the arms of a run" in report(f"local-dir:{BUNDLE}", arms="unsteered")
    assert "no device is named 'tpu'" in report(f"local-dir:{BUNDLE}", device="tpu")
    assert "there is no shard" in report(f"local-dir:{BUNDLE}", data=str(tmp_path / "none.tar"))
    (run_folder / "config.yaml").write_text(configs.text(configs.resolve("digits")[0]))
    assert "is a run of digits: steer eval evaluates CLIP models" in report(run_folder, arms="unsteered")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.yaml").write_text(configs.text(configs.resolve("clip")[0]))
    assert f"has no exported model: finish it first, steer run --resume {tmp_path / 'new'}" in report(tmp_path / "new")
