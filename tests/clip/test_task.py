import io
import json
import shutil

import pytest
import torch
from PIL import Image
from torch import Tensor
from webdataset.writer import TarWriter

from steering import Pairs, RunError, UserError
from steering.clip.data.shards import Shards
from steering.clip.emoji_data import emoji_shard
from steering.clip.models import Towers, build, export
from steering.clip.reference.model import Reference
from steering.clip.task import Clip
from steering.references.store import ReferenceLosses
from steering.runs import config as configs
from steering.settings import Recipe
from steering.task import Batch
from steering.training import loop
from steering.training.sampler import Windows

COLOURS = ["red", "green", "blue", "yellow", "black", "white", "gray", "orange", "purple", "brown"]


def picture(number: int, form: str = "PNG") -> bytes:
    image = Image.new("RGB", (40, 40), COLOURS[number % len(COLOURS)])
    image.paste((number % 256, 255 - number % 256, 128), (5, 5, 20, 20))
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


@pytest.fixture
def shards(tmp_path):
    """Two shards of 60 pairs each; ``broken`` of them hold no picture but some bytes."""

    def write(broken: int = 0) -> str:
        for shard in range(2):
            with TarWriter(str(tmp_path / f"{shard:03d}.tar")) as tar:
                for position in range(60):
                    number = 60 * shard + position
                    bad = number % 60 < broken
                    sample = {"__key__": f"{number:05d}", "txt": f"{COLOURS[number % 10]} picture {number}"}
                    tar.write(sample | {"jpg": b"not a picture" if bad else picture(number, "JPEG")})
        return f"{tmp_path}/{{000..001}}.tar"

    return write


def own_task(data: str, tmp_path, **options) -> Clip:
    """The small architecture on shards of one's own, with an untrained reference of the same format as any."""
    torch.manual_seed(1)
    ref = export(build("emoji-rn32", temperature=0.07), tmp_path / "reference")
    return Clip(data=data, model="emoji-rn32", ref=f"local-dir:{ref}", **options)


def test_a_batch_gives_features_of_both_models_for_the_same_pairs(shards, tmp_path):
    task = own_task(shards(), tmp_path)
    batch = next(task.stream(16, seed=0))
    target, reference = task.target(), task.reference()
    actual, expected = task.losses(target, batch).values, task.losses(reference, batch).values
    assert isinstance(actual, Pairs) and isinstance(expected, Pairs)
    assert actual.left.shape == actual.right.shape == expected.left.shape == (16, 96)
    assert actual.left.requires_grad and not expected.left.requires_grad
    assert isinstance(actual.scale, Tensor) and actual.scale.requires_grad
    assert actual.scale.item() == pytest.approx(100), "0.01, the paper's temperature, is the default for other shards"


def test_losses_are_those_of_anything_that_answers_a_batch_with_pairs():
    class Constant(torch.nn.Module):
        def forward(self, batch: Batch) -> Pairs:
            return Pairs(torch.eye(len(batch)), torch.eye(len(batch)), 2.0)

    values = Clip().losses(Constant(), Batch(torch.arange(3), {})).values
    assert isinstance(values, Pairs) and torch.equal(values.left, torch.eye(3)) and values.scale == 2.0


def test_the_reference_sees_the_same_picture_whatever_the_view_of_the_target(shards, tmp_path):
    task = own_task(shards(), tmp_path)
    reference = task.reference()
    first, later = (next(task.stream(task.size - len(task._held_out), seed=seed)) for seed in (0, 1))
    one, other = (reference(batch).left[batch.ids.argsort()] for batch in (first, later))
    assert torch.allclose(one, other, atol=1e-5)
    views = [batch["image"][batch.ids.argsort()] for batch in (first, later)]
    assert not torch.allclose(views[0], views[1], atol=0.1)


def test_held_out_pairs_are_never_trained_on(shards, tmp_path):
    task = own_task(shards(), tmp_path)
    held_out = set(task._held_out)
    trained = set(next(task.stream(120 - len(held_out), seed=0)).ids.tolist())
    assert not trained & held_out and len(trained | held_out) == 120 and held_out
    assert set(task._suite.gallery.usable) == held_out
    assert task.size == 120 and task.rows == 240, "ids are numbers of samples, whoever is held out"


def test_the_sides_of_samples_stay_when_shards_are_added(shards, tmp_path):
    shards()
    few = own_task(f"{tmp_path}/000.tar", tmp_path)._held_out
    assert own_task(f"{tmp_path}/*.tar", tmp_path)._held_out[: len(few)] == few


def test_weights_say_how_often_a_source_is_seen(shards, tmp_path):
    shards()
    val = str(emoji_shard("held_out_twitter"))
    task = own_task(f"{tmp_path}/000.tar::{tmp_path}/001.tar", tmp_path, val=val, weights="2,1")
    stream = task.stream(10, seed=0)
    ids = torch.cat([next(stream).ids for _ in range(18)])  # two epochs of 60 and 30
    assert ids.bincount(minlength=120).tolist() == [2] * 60 + [1] * 60


def test_remote_data_are_read_in_windows_and_a_resumed_stream_goes_on(shards, tmp_path):
    shards()
    task = own_task(f"pipe:cat {tmp_path}/{{000..001}}.tar", tmp_path, window=20)
    stream = task.stream(8, seed=0)
    assert isinstance(stream.plan.order, Windows)
    first = [next(stream).ids.tolist() for _ in range(5)]
    state = stream.state_dict()
    rest = [next(stream).ids.tolist() for _ in range(9)]
    again = own_task(task.data, tmp_path, window=20).stream(8, seed=0)
    again.load_state_dict(state)
    assert [next(again).ids.tolist() for _ in range(9)] == rest
    shown = [number for ids in first + rest for number in ids]
    assert len(set(shown)) == 112 and not set(shown) & set(task._held_out)


def test_pictures_with_classes_add_their_metrics_behind_those_of_the_pairs(shards, tmp_path):
    for kind in ("red", "green"):
        (tmp_path / "kinds" / kind).mkdir(parents=True)
        (tmp_path / "kinds" / kind / "0.png").write_bytes(picture(COLOURS.index(kind)))
    (tmp_path / "kinds" / "red" / "1.png").write_bytes(b"not a picture")
    task = own_task(shards(), tmp_path, zeroshot=str(tmp_path / "kinds"))
    assert next(iter(task.metrics)) == "i2t_r10" and list(task.metrics)[-2:] == ["top1", "class_recall"]
    metrics = task.evaluate(task.target())
    assert set(metrics) == set(task.metrics) and metrics["top1"] in (0, 0.5, 1)
    assert task.skipped() == {"not a picture": 1}


def test_a_val_set_leaves_the_whole_data_for_training(shards, tmp_path):
    data = shards()
    task = own_task(data, tmp_path, val=str(tmp_path / "000.tar"))
    assert task.size == 120
    metrics = task.evaluate(task.target())
    assert set(metrics) == set(task.metrics) == {f"{way}_r{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)}
    assert task.metrics["i2t_r10"].chance == pytest.approx(10 / 60)


def copied(tmp_path):
    shutil.copy(tmp_path / "000.tar", tmp_path / "copy.tar")
    return str(tmp_path / "copy.tar")


def linked(tmp_path):
    (tmp_path / "link.tar").symlink_to(tmp_path / "000.tar")
    return str(tmp_path / "link.tar")


def written_again(tmp_path, count=60):
    """The same pictures in a shard of another name, order and with other captions."""
    source = Shards.open(tmp_path / "000.tar")
    with TarWriter(str(tmp_path / "again.tar")) as tar:
        for number in reversed(range(60)):
            content = source.picture(number) if number < count else picture(1000 + number, "JPEG")
            tar.write({"__key__": f"x{number}", "jpg": content, "txt": "another caption"})
    return str(tmp_path / "again.tar")


@pytest.mark.parametrize(
    "val", [lambda path: str(path / "000.tar"), lambda path: f"{path}/*.tar", copied, linked, written_again]
)
def test_what_is_trained_on_is_not_measured_on(shards, tmp_path, val):
    data = shards()
    with pytest.raises(
        UserError, match=r"val is to be held out, but data hold (/.*tar|60 of 60 of its pictures) as well"
    ):
        own_task(data, tmp_path, val=val(tmp_path)).stream(8, seed=0)


def test_a_few_pictures_that_are_in_both_are_told(shards, tmp_path, capfd):
    data = shards()
    val = written_again(tmp_path, 5)
    capfd.readouterr()
    own_task(data, tmp_path, val=val).stream(8, seed=0)
    assert capfd.readouterr().err == "note: 5 of 60 pictures to measure on are trained on as well\n"


def test_pictures_that_are_held_out_with_another_caption_are_told(tmp_path, capfd):
    """Each of 50 pictures is there twice, and one pair in 20 is held out."""
    with TarWriter(str(tmp_path / "0.tar")) as tar:
        for number in range(100):
            tar.write({"__key__": f"{number:05d}", "txt": f"text {number}", "jpg": picture(number // 2, "JPEG")})
    task = own_task(str(tmp_path / "0.tar"), tmp_path)
    task.stream(8, seed=0)
    count = len(task._held_out)
    assert capfd.readouterr().err == f"note: {count} of {count} pictures to measure on are trained on as well\n"


def test_unreadable_pictures_are_replaced_and_counted(shards, tmp_path):
    task = own_task(shards(broken=3), tmp_path, bad_share=0.2)
    stream = task.stream(16, seed=0)
    ids = torch.cat([next(stream).ids for _ in range(8)])
    bad = {number for number in range(120) if number % 60 < 3} - set(task._held_out)
    assert not bad & set(ids.tolist())
    assert task._pairs.skips.reasons == {"not a picture": len(bad)} and sum(task.skipped().values()) >= len(bad)


def test_too_many_unreadable_pictures_end_the_run(shards, tmp_path):
    task = own_task(shards(broken=40), tmp_path, bad_share=0.01)
    with pytest.raises(
        RunError, match=r"10 of .* samples cannot be used .10 not a picture., more than the 1.0% allowed"
    ):
        stream = task.stream(16, seed=0)
        for _ in range(8):
            next(stream)


def test_an_exported_target_is_a_reference_for_the_next_run(shards, tmp_path):
    task = own_task(shards(), tmp_path)
    target = task.target()
    task.export(target, tmp_path / "export")
    again = Clip(data=task.data, model="emoji-rn32", ref=str(tmp_path / "export")).reference()
    assert isinstance(again, Reference) and isinstance(again.towers, Towers)
    images = torch.randn(3, 3, 32, 32)
    assert torch.allclose(again.towers.encode_images(images), target.eval().encode_images(images), atol=1e-6)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"noise": 1.5}, "noise and bad_share are shares within 0 and 1, got noise=1.5"),
        ({"temperature": 0.0}, "the temperature is a number above 0, got 0"),
        ({"workers": -1}, "workers is a number of processes, 0 or more, got -1"),
        ({"cache_gb": 0.0}, "cache_gb and window are numbers above 0, got cache_gb=0"),
        ({"data": "a.tar::b.tar", "weights": "1"}, "one for each of the 2 sources of data, as in 2,1; got 1"),
        ({"data": "a.tar", "weights": "0"}, "weights are numbers above 0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        Clip(**options)


def test_missing_shards_are_named(tmp_path):
    with pytest.raises(UserError, match=r"no shard .*000\.tar"):
        _ = configs.resolve("clip", typed={"options": {"data": f"{tmp_path}/{{000..003}}.tar"}})


def test_the_bundled_recipe_steers_by_its_own_temperature():
    """A rule with another temperature than the model's would be another loss than the one that is evaluated."""
    recipe = Clip(temperature=0.1).recipe
    assert all(arm.rule == "kl(temperature=0.1)" for arm in recipe.arms.values())


@pytest.mark.slow
def test_training_on_the_bundled_pairs_beats_chance_and_a_wrong_share_is_told(tmp_path):
    """40 steps on clean pairs: recall at 10 among 370 held-out names, 2.7 % for a guess, is above twice that."""
    task = Clip(noise=0.3)
    recipe = Recipe.model_validate(task.recipe.model_dump() | {"steps": 40, "warmup": 5})
    expected = ReferenceLosses(task)
    training = loop.Training(task, recipe.arms["jest"], recipe, reference=expected, seed=0)
    records = []
    assert loop.run(training, tmp_path / "checkpoint.pt", record=records.append)
    assert records[-1]["evaluation"]["held_out"] > 2 * 10 / 370
    assert training.counters.means()["wrong"] < 0.2, "of 0.3 in the data"


@pytest.mark.slow
def test_a_run_leaves_a_gallery_and_exports(shards, tmp_path, monkeypatch):
    from rich.console import Console

    from steering.runs.run import Run

    monkeypatch.chdir(tmp_path)
    options = {"data": shards(), "model": "emoji-rn32", "ref": own_task("x", tmp_path).ref}
    config, task = configs.resolve("clip", typed={"options": options, "recipe": {"steps": 3, "batch": 16}})
    summary = Run(config, task, tmp_path / "run", Console(quiet=True), ["steer"]).execute()
    assert list(summary.arms) == ["reference", "unsteered", "drrho_clip", "jest"]
    report = (tmp_path / "run" / "report.html").read_text()
    assert "Text-to-image retrieval" in report and report.count("data:image/png;base64,") >= 2
    assert (tmp_path / "run/arms/jest/seed0/export/open_clip_config.json").exists()
    assert json.loads((tmp_path / "run/summary.json").read_text())["arms"]["jest"]["results"][0]["samples"] == 48


def test_a_target_that_goes_on_from_a_checkpoint_is_its_own_reference_by_default(tmp_path):
    torch.manual_seed(2)
    start = f"local-dir:{export(build('emoji-rn32', temperature=0.05), tmp_path / 'start')}"
    task = Clip(init=start)
    target, expected = task.target(), task.reference().towers
    assert task.refs == [start] and all(p.requires_grad for p in target.parameters())
    for name, value in expected.state_dict().items():
        if "logit_scale" not in name:
            assert torch.equal(target.state_dict()[name], value)
    assert target.temperature == pytest.approx(0.05), "it goes on from there"
    assert Clip(init=start, temperature=0.2).target().temperature == pytest.approx(0.2)
    assert Clip(init=start, ref="local-dir:other").refs == ["local-dir:other"]
    with pytest.raises(UserError, match="init and model both name the target"):
        Clip(init=start, model="ViT-B-16")


def test_a_teacher_may_be_another_model_than_the_reference(tmp_path):
    teacher = f"local-dir:{export(build('emoji-rn32', temperature=0.05), tmp_path / 'teacher')}"
    task = Clip(teacher=teacher)
    assert task.with_teacher().refs == [teacher] and task.refs != [teacher] and Clip().with_teacher() == Clip()
    arm = task.recipe.more["openclip_distill"]
    actual = loop.Training(task, arm, task.recipe, reference=ReferenceLosses(task), seed=0)
    assert actual.step()["distillation"] > 0 and actual.reference.teacher is not actual.reference
    assert actual.reference._load.cache_info().currsize == 0, "the reference was loaded for nothing"
    with pytest.raises(UserError, match="teacher_cache holds features of a teacher, but none is named"):
        Clip(teacher_cache="features")


def test_arms_that_learn_a_temperature_begin_where_their_authors_do(shards, tmp_path):
    task = own_task(shards(), tmp_path)
    reference = ReferenceLosses(task)
    arm = task.recipe.more["openclip"]
    actual = loop.Training(task, arm, task.recipe, reference=reference, seed=0)
    assert arm.temperature == 0.07 and actual.step()["temperature"] == pytest.approx(0.07, rel=1e-3)
    kept = loop.Training(task, task.recipe.arms["drrho_clip"], task.recipe, reference=reference, seed=0)
    assert kept.model.temperature == pytest.approx(0.01)  # type: ignore[union-attr]


def test_parts_are_nested_and_leave_out_what_is_held_out(tars):
    task = Clip(data=tars(shards=2, pairs=50), model="emoji-rn32")
    shown = {n: set(next(iter(task.part(n).stream(n, seed=0))).ids.tolist()) for n in (10, 40)}
    assert len(shown[10]) == 10 and len(shown[40]) == 40 and shown[10] < shown[40]
    assert not shown[40] & set(task._held_out)
    with pytest.raises(UserError, match=r"1000 training samples were asked for, of \d+ there are"):
        task.part(1000).stream(10, seed=0)
    with pytest.raises(UserError, match="samples is a number of training pairs, 1 or more, got 0"):
        task.part(0)
