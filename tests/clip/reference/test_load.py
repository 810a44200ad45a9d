"""References by every name, and the ways in which a naive loader gives wrong features without an error."""

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
import pytest
import torch
from open_clip.transformer import QuickGELU
from PIL import Image
from safetensors.torch import save_file
from tiny_models import TINY, shrink
from torch import nn

from steering.clip.models import CONFIG, EMOJI, MERGES, WEIGHTS, build, export
from steering.clip.reference import load as reference
from steering.clip.reference.load import load, load_reference
from steering.errors import UserError

OPENAI = "timm/vit_base_patch32_clip_224.openai"  # where open_clip 3.3 gets openai/ViT-B-32 from
ODD = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.1), "interpolation": "bilinear", "resize_mode": "squash"}


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """No network, a cache of the hub of its own, and open_clip's own names with models that are made in no time."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    shrink(monkeypatch)


@pytest.fixture(scope="module")
def state():
    """Weights of a tiny ViT-B-32, far enough from zero for the kind of GELU to matter."""
    torch.manual_seed(1)
    state = open_clip.CLIP(**json.loads(json.dumps(TINY))).state_dict()
    return {name: (3 * value if value.ndim > 1 else value).contiguous() for name, value in state.items()}


def cached(cache, repo, **files):
    """Files of a repository, as the hub's library keeps what it has downloaded."""
    index = cache / f"models--{repo.replace('/', '--')}"
    (index / "refs").mkdir(parents=True)
    (index / "refs/main").write_text("0" * 40)
    snapshot = index / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    if "weights" in files:
        save_file(files["weights"], snapshot / WEIGHTS)
    if "config" in files:
        (snapshot / CONFIG).write_text(json.dumps(files["config"]))
    return cache


def batch(towers):
    torch.manual_seed(2)
    return torch.randn(4, 3, 32, 32), towers.tokenize(["a cat", "a dog", "the sea", "nothing at all"])


def assert_equal_features(towers, model):
    """The same as open_clip's own model computes of the same pictures and texts."""
    images, tokens = batch(towers)
    with torch.no_grad():
        for actual, expected in zip(towers.encode(images, tokens), model.eval()(images, tokens)[:2], strict=False):
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


def refusal(ref):
    """What the user is told, which must be one line."""
    with pytest.raises(UserError) as caught:
        load_reference(ref)
    assert "\n" not in str(caught.value)
    return str(caught.value)


SPELLINGS = ["openai/ViT-B/32", "ViT-B-32:openai", "ViT-B-32-quickgelu/openai"]


@pytest.mark.parametrize("ref", SPELLINGS)
def test_openai_weights_are_run_with_quickgelu_by_whatever_spelling(ref, state, tmp_path):
    """open_clip's ViT-B-32 is a GELU model; its tag openai was trained with QuickGELU."""
    cache = cached(tmp_path, OPENAI, weights=state)
    towers = load_reference(ref)
    assert any(isinstance(m, QuickGELU) for m in towers.modules())
    assert not any(isinstance(m, nn.GELU) for m in towers.modules())
    model = open_clip.create_model(
        model_name="ViT-B-32-quickgelu", pretrained="openai", cache_dir=str(cache), require_pretrained=True
    )
    assert_equal_features(towers, model)


def test_quickgelu_matters(state, tmp_path):
    """The test above could not fail if both activations gave the same features."""
    file = tmp_path / "w.safetensors"
    save_file(state, file)
    plain, quick = load_reference(f"ViT-B-32={file}"), load_reference(f"ViT-B-32-quickgelu={file}")
    difference = plain.encode(*batch(plain)).left - quick.encode(*batch(quick)).left
    assert difference.abs().max() > 1e-3
    assert (plain.describe()["quick_gelu"], quick.describe()["quick_gelu"]) == (False, True)


def test_every_listed_model_is_made_as_it_was_trained(monkeypatch):
    """All pairs: activation and preprocessing of the tag, under either order of its name."""
    made = {}
    monkeypatch.setattr(open_clip, "download_pretrained", lambda release: "file")
    monkeypatch.setattr(reference, "make", lambda arch, file, **options: made.update(arch=arch, **options))
    monkeypatch.setattr(reference, "_verified", lambda towers: towers)
    contradictions = []
    for arch, tag in open_clip.list_pretrained():
        release, config = open_clip.get_pretrained_cfg(arch, tag), open_clip.get_model_config(arch) or {}
        for ref in (f"{tag}/{arch}", f"{arch}/{tag}"):
            try:
                load(ref)
            except UserError:
                contradictions.append((arch, tag))
                continue
            quick = made["quick_gelu"] or config.get("quick_gelu", False)
            assert (made["arch"], quick) == (arch, release.get("quick_gelu", False)), ref
            assert made["preprocessing"] == {key: release[key] for key in ODD}, ref
    assert set(contradictions) == {("roberta-ViT-B-32", "laion2b_s12b_b32k")}


def test_architecture_with_quickgelu_is_refused_for_weights_without():
    message = refusal("laion2b_s12b_b32k/roberta-ViT-B-32")
    assert "QuickGELU says the architecture, GELU the weights" in message
    assert message.endswith("--ref hf-hub:laion/CLIP-ViT-B-32-roberta-base-laion2B-s12B-b32k")


def test_reference_is_frozen_and_in_evaluation_mode(state, tmp_path):
    cached(tmp_path, OPENAI, weights=state)
    towers = load_reference("openai/ViT-B-32")
    assert not towers.training
    assert not any(p.requires_grad for p in towers.parameters())
    assert all(p.requires_grad for p in load("openai/ViT-B-32").parameters())


@pytest.mark.parametrize("by_hand", [False, True])
def test_preprocessing_is_the_tags_own(by_hand, state, tmp_path, monkeypatch):
    listed = open_clip.pretrained._PRETRAINED["ViT-B-32"]
    monkeypatch.setitem(listed, "odd", {"url": "", "hf_hub": "org/odd/", **ODD})
    cache = cached(tmp_path, "org/odd", weights=state)
    ref = f"odd/ViT-B-32={next(cache.rglob(WEIGHTS))}" if by_hand else "odd/ViT-B-32"
    towers = load_reference(ref)
    _, _, transform = open_clip.create_model_and_transforms(
        model_name="ViT-B-32", pretrained="odd", cache_dir=str(cache)
    )
    picture = Image.effect_noise((40, 50), 80).convert("RGB")
    expected: Any = transform
    assert torch.equal(towers.preprocess(picture), expected(picture))
    assert not torch.equal(towers.preprocess(picture), build("ViT-B-32").preprocess(picture))


def test_hub_repository_brings_its_own_configuration(state, tmp_path):
    content = {"model_cfg": {**TINY, "quick_gelu": True}, "preprocess_cfg": ODD}
    cache = cached(tmp_path, "org/model", weights=state, config=content)
    towers = load_reference("hf-hub:org/model")
    assert_equal_features(
        towers,
        open_clip.create_model(model_name="hf-hub:org/model", cache_dir=str(cache), require_pretrained=True),
    )
    assert towers.describe()["quick_gelu"]
    assert towers.preprocessing.mean == ODD["mean"]
    assert load_reference(str(export(towers, tmp_path / "export"))).preprocessing == towers.preprocessing


@pytest.mark.parametrize(("form", "end"), [("ViT-B/32={}", "safetensors"), ("ViT-B-32,{}", "pt")])
def test_checkpoint_file_with_its_architecture(form, end, state, tmp_path):
    file = tmp_path / f"epoch, 1.{end}"
    if end == "pt":
        torch.save({"epoch": 1, "state_dict": {f"module.{name}": x for name, x in state.items()}}, file)
    else:
        save_file(state, file)
    towers = load_reference(form.format(file))
    assert_equal_features(
        towers, open_clip.create_model(model_name="ViT-B-32", pretrained=str(file), require_pretrained=True)
    )


def test_checkpoint_file_of_the_emoji_model(tmp_path):
    towers = build(EMOJI).eval()
    torch.save(towers.clip.state_dict(), tmp_path / "epoch.pt")
    again = load_reference(f"{EMOJI}={tmp_path / 'epoch.pt'}")
    assert again.describe()["weights"] == towers.describe()["weights"]
    assert torch.equal(again.tokenize(["cat"]), towers.tokenize(["cat"]))


def test_half_precision_weights_become_float32(state, tmp_path):
    save_file({name: x.half() for name, x in state.items()}, tmp_path / "half.safetensors")
    towers = load_reference(f"ViT-B-32={tmp_path / 'half.safetensors'}")
    assert {p.dtype for p in towers.parameters()} == {torch.float32}


def test_checkpoint_file_alone_is_asked_for_its_architecture(tmp_path):
    file = tmp_path / "w.pt"
    file.touch()
    assert f"write ARCH={file}" in refusal(str(file))
    assert "'ViT-B-33'; did you mean ViT-B-32?" in refusal(f"ViT-B-33={file}")


@pytest.mark.parametrize("ref", ["ViT-B/32", EMOJI])
def test_architecture_without_weights_is_refused(ref):
    arch = ref.replace("/", "-")
    assert f"{ref} alone has random weights, no reference: write {arch}=FILE or" in refusal(ref)


@pytest.mark.parametrize("change", ["a weight is missing", "a weight is too many", "a weight is smaller"])
def test_weights_that_do_not_fill_the_model_are_refused(change, state, tmp_path):
    state = dict(state)
    if change == "a weight is missing":
        del state["ln_final.weight"]
    elif change == "a weight is too many":
        state["reference.weight"] = torch.zeros(1)
    else:
        state["ln_final.weight"] = torch.zeros(3)
    save_file(state, tmp_path / "w.safetensors")
    name = "reference" if change == "a weight is too many" else "ln_final.weight"
    message = refusal(f"ViT-B-32={tmp_path / 'w.safetensors'}")
    assert message.startswith("cannot load ViT-B-32=")
    assert name in message


class Harmful:
    """Runs code when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_checkpoint_with_code_is_refused_and_not_run(state, tmp_path):
    trace = tmp_path / "was here"
    torch.save({"state_dict": state, "args": Harmful(trace)}, tmp_path / "w.pt")
    assert "holds Python objects besides tensors" in refusal(f"ViT-B-32={tmp_path / 'w.pt'}")
    folder = export(build(EMOJI), tmp_path / "export")
    (folder / WEIGHTS).unlink()
    shutil.copy(tmp_path / "w.pt", folder / "open_clip_pytorch_model.bin")
    assert "holds Python objects besides tensors" in refusal(str(folder))
    assert not trace.exists()


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_torchscript_archive_is_refused_with_the_way_out(tmp_path):
    """OpenAI's own ViT-B-32.pt is one; open_clip 3.3 downloads the same weights as safetensors."""
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(tmp_path / "ViT-B-32.pt"))
    message = refusal(f"ViT-B-32/openai={tmp_path / 'ViT-B-32.pt'}")
    assert "is a TorchScript archive" in message
    assert ".safetensors" in message


def test_configuration_beside_a_file_must_agree_on_quickgelu(state, tmp_path):
    save_file(state, tmp_path / WEIGHTS)
    (tmp_path / CONFIG).write_text(json.dumps({"model_cfg": {**TINY, "quick_gelu": True}}))
    file = tmp_path / WEIGHTS
    assert f"disagree on QuickGELU: name the folder, --ref {tmp_path}" in refusal(f"ViT-B-32={file}")
    assert load_reference(f"ViT-B-32-quickgelu={file}").describe()["quick_gelu"]
    assert load_reference(str(tmp_path)).describe()["quick_gelu"]


def run(folder, *indices):
    """A run folder with exported models at these places."""
    folder.mkdir()
    (folder / "config.yaml").touch()
    for index in indices:
        export(build(EMOJI), folder / "arms" / index / "export")
    return folder


@pytest.mark.parametrize("below", ["", "arms/drrho", "arms/drrho/seed0"])
def test_run_with_one_model_by_any_of_its_folders(below, tmp_path):
    folder = run(tmp_path / "lr=0.1,x", "drrho/seed0")
    towers = load_reference(str(folder / below))
    assert towers.describe()["arch"] == EMOJI
    assert load_reference(f"local-dir:{folder}/arms/drrho/seed0/export").describe() == towers.describe()


def test_run_with_several_models_lists_them(tmp_path):
    folder = run(tmp_path / "run", "drrho/seed0", "erm/seed0", "erm/seed1")
    message = refusal(str(folder))
    assert "holds 3 models" in message
    assert all(f"arms/{index}/export" in message for index in ("drrho/seed0", "erm/seed0", "erm/seed1"))
    assert "holds 2 models" in refusal(str(folder / "arms/erm"))
    assert load_reference(str(folder / "arms/drrho")).source == str(folder / "arms/drrho/seed0/export")


def test_folder_without_a_model_is_refused(tmp_path):
    assert "holds no model" in refusal(str(run(tmp_path / "run")))
    assert f"has no {CONFIG}" in refusal(f"local-dir:{tmp_path}")


def test_folder_that_lost_a_file_is_refused(tmp_path):
    folder = export(build(EMOJI), tmp_path / "export")
    (folder / MERGES).rename(tmp_path / "merges")
    assert f"lost its tokenizer, {MERGES}: export the model again" in refusal(str(folder))
    (tmp_path / "merges").rename(folder / MERGES)
    (folder / WEIGHTS).unlink()
    assert "no weights" in refusal(str(folder))


def test_folder_with_another_models_tokenizer_is_refused(tmp_path):
    """Without our note open_clip gives every model the 49,408 words of CLIP."""
    folder = export(build(EMOJI), tmp_path / "export")
    content = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**content, "steer": {}}))
    assert "vocabulary of 4610, the tokenizer found for it one of 49408" in refusal(str(folder))


def test_configuration_cannot_read_outside_its_folder(tmp_path):
    folder = export(build(EMOJI), tmp_path / "export")
    (folder / MERGES).rename(tmp_path / "merges.gz")
    content = json.loads((folder / CONFIG).read_text())
    content["steer"]["merges"] = "../merges.gz"
    (folder / CONFIG).write_text(json.dumps(content))
    assert "lost its tokenizer" in refusal(str(folder))


@pytest.mark.parametrize("text", ["[]", "not json", '{"model_cfg": {}}'])
def test_configuration_of_another_kind_is_refused(text, tmp_path):
    (tmp_path / CONFIG).write_text(text)
    assert "has no model_cfg as open_clip writes it" in refusal(str(tmp_path))


def test_without_network_one_line_says_what_to_download_and_how_to_name_it(tmp_path, capfd):
    url = huggingface_hub.hf_hub_url(OPENAI, WEIGHTS)
    message = refusal("openai/ViT-B-32")
    assert message.startswith("cannot fetch ViT-B-32/openai (")
    assert message.endswith(f"Download {url} elsewhere and say --ref ViT-B-32/openai=FILE")
    url = huggingface_hub.hf_hub_url("org/model", CONFIG)
    message = refusal("hf-hub:org/model")
    assert f"Download {url} elsewhere and {WEIGHTS} beside it, then say --ref local-dir:FOLDER" in message
    assert "".join(capfd.readouterr()) == ""


def test_fetching_is_announced_and_a_failure_told_in_one_line(tmp_path, capfd, monkeypatch):
    def refuse(release):
        try:
            raise OSError("Name or service not known")
        except OSError as error:
            raise RuntimeError("Failed to download weights\nin two lines") from error

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(open_clip, "download_pretrained", refuse)
    message = refusal("openai/ViT-B-32")
    assert message.startswith("cannot fetch ViT-B-32/openai (Name or service not known). ")
    assert capfd.readouterr().err.startswith("fetching ViT-B-32/openai (")


def test_file_fetched_by_hand_is_the_same_model(state, tmp_path):
    cache = cached(tmp_path, OPENAI, weights=state)
    fetched = load_reference("openai/ViT-B-32").describe()
    by_hand = load_reference(f"ViT-B-32/openai={next(cache.rglob(WEIGHTS))}").describe()
    assert fetched.pop("source") == "ViT-B-32/openai"
    assert by_hand.pop("source").startswith("ViT-B-32/openai=")
    assert fetched == by_hand


@pytest.mark.parametrize(
    "ref, phrases",
    [
        ("opnai/ViT-B-32", "no weights 'opnai' of ViT-B-32; did you mean openai?"),
        ("openai/ViT-B-33", "'openai/ViT-B-33'; did you mean openai/ViT-B-32?"),
        ("something", "open_clip.list_pretrained("),
        ("./nowhere", "no such file or folder"),
        ("models/w.pt", "no such file or folder"),
        ("ViT-B-32=nowhere.pt", "there is no file nowhere.pt"),
        ("hf-hub:alone", "write hf-hub:ORG/REPO"),
    ],
)
def test_name_that_is_no_reference_gets_the_way_out(ref, phrases):
    assert phrases in refusal(ref)


@pytest.mark.slow
def test_full_size_openai_model_through_the_hubs_cache(tmp_path, monkeypatch):
    """The real architecture, from a file of the form and place that open_clip 3.3 itself downloads."""
    monkeypatch.undo()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    model = open_clip.create_model(model_name="ViT-B-32-quickgelu", precision="pure_fp16")
    cached(tmp_path, OPENAI, weights=model.state_dict())
    towers = load_reference("openai/ViT-B-32")
    images, tokens = torch.randn(1, 3, 224, 224), towers.tokenize(["a cat"])
    assert tokens.shape == (1, 77)
    with torch.no_grad():
        for actual, expected in zip(towers.encode(images, tokens), model.float()(images, tokens)[:2], strict=False):
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
    shutil.rmtree(tmp_path)
