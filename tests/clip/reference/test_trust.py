"""Model folders and caches of others: nothing in them runs, nothing in them waits, what is wrong is one line."""

import gzip
import json
import os
from pathlib import Path

import open_clip
import pytest
import torch
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from tiny_models import TINY

from steering.clip.data.manifest import Shard
from steering.clip.data.shards import Shards
from steering.clip.emoji_data import BUNDLE
from steering.clip.models import CONFIG, EMOJI, MERGES, WEIGHTS, build, export
from steering.clip.reference import fill_cache as filling
from steering.clip.reference.cache import MANIFEST, Cache, Manifest, _checksum, short_hash
from steering.clip.reference.load import load_reference
from steering.clip.reference.model_files import read_config
from steering.errors import UserError

DEEP, HUGE = "[" * 100_000 + "]" * 100_000, "9" * 5000


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> dict[str, bytes]:
    folder = export(build(EMOJI), tmp_path_factory.mktemp("template") / "export")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def folder(template, tmp_path) -> Path:
    for name, content in template.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def refusal(ref: str) -> str:
    with pytest.raises(UserError) as caught:
        load_reference(ref)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 1000
    return message


def with_text(**options) -> dict:
    return {"model_cfg": {"text_cfg": options}}


def merged(old, new):
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    return old | {key: merged(old.get(key), value) for key, value in new.items()}


CONFIGS = [
    # what a loader would act on
    (with_text(tokenizer_kwargs={"trust_remote_code": True}), "has 'trust_remote_code', which is not passed on"),
    (with_text(tokenizer_kwargs={"tokenizer_file": "/etc/passwd"}), "has 'tokenizer_file', which is not passed on"),
    (with_text(tokenizer_kwargs={"bpe_path": "x"}), "has 'bpe_path'"),
    (with_text(tokenizer_kwargs={"additional_special_tokens": ["(a+)+$"]}), "has 'additional_special_tokens'"),
    (with_text(tokenizer_kwargs=["trust_remote_code"]), "needed is an object"),
    (with_text(act_kwargs={"inplace": True}), "act_kwargs has 'inplace'"),
    (with_text(trust_remote_code=True), "text_cfg has 'trust_remote_code'"),
    (with_text(hf_model_name="../../evil/model"), "needed is a plain name"),
    (with_text(hf_tokenizer_name="https://host/x"), "needed is a plain name"),
    ({"model_cfg": {"vision_cfg": {"timm_model_name": "hf-hub:evil/model"}}}, "needed is a plain name"),
    ({"model_cfg": {"vision_cfg": {"timm_model_name": "local-dir:/tmp/x"}}}, "needed is a plain name"),
    ({"model_cfg": {"vision_cfg": {"pretrained": True}}}, "vision_cfg has 'pretrained'"),
    ({"model_cfg": {"pretrained_image_path": "/etc/passwd"}}, "model_cfg has 'pretrained_image_path'"),
    # what is valid and wrong
    ({"model_cfg": None}, "has no model_cfg"),
    ({"model_cfg": {"text_cfg": None}}, "has no model_cfg"),
    ({"model_cfg": {"vision_cfg": 3}}, "has no model_cfg"),
    ({"model_cfg": {"embed_dim": None}}, "cannot load"),
    ({"model_cfg": {"embed_dim": -3}}, "cannot load"),
    ({"model_cfg": {"embed_dim": "96"}}, "needed is a number"),
    ({"model_cfg": {"embed_dim": 97}}, "cannot load"),
    (with_text(layers=10**12), "layers is '1000000000000'"),
    (with_text(width=65_536, layers=512), "describes a model of more than 8,"),
    (with_text(vocab_size=4_000_000), "describes a model of more than"),
    (with_text(vocab_size=4611), "needed are 4,097 different pairs"),
    (with_text(vocab_size=None), "needed are 48,894 different pairs"),
    (with_text(context_length=0), "cannot load"),
    (with_text(context_length=20), "size mismatch for positional_embedding"),
    (with_text(pool_type="\u202enone"), "needed is a plain name"),
    ({"preprocess_cfg": {"std": 0}}, "preprocess_cfg.std"),
    ({"preprocess_cfg": {"std": [0.2, 0.0, 0.2]}}, "preprocess_cfg.std"),
    ({"preprocess_cfg": {"std": [0.2, float("nan"), 0.2]}}, "preprocess_cfg.std"),
    ({"preprocess_cfg": {"mean": [0.2, float("inf"), 0.2]}}, "preprocess_cfg.mean"),
    ({"preprocess_cfg": {"mean": [0.2]}}, "preprocess_cfg.mean"),
    ({"preprocess_cfg": {"mean": "abc"}}, "preprocess_cfg.mean"),
    ({"preprocess_cfg": {"size": 10**9}}, "preprocess_cfg.size"),
    ({"preprocess_cfg": {"mode": "CMYK"}}, "cannot load"),
    ({"preprocess_cfg": [1]}, "has no model_cfg"),
    ({"steer": None}, "vocabulary of 4610, the tokenizer found for it one of 49408"),
    ({"steer": [1]}, "has no model_cfg"),
    ({"steer": {"merges": 3}}, "steer.merges is '3'"),
    ({"steer": {"merges": "none.gz"}}, "has lost its tokenizer, none.gz"),
]


@pytest.mark.parametrize(("change", "message"), CONFIGS, ids=[str(change)[:70] for change, _ in CONFIGS])
def test_a_configuration_that_asks_for_more_than_a_model_is_refused(folder, change, message):
    content = merged(json.loads((folder / CONFIG).read_text()), change)
    (folder / CONFIG).write_text(json.dumps(content))
    assert message in refusal(f"local-dir:{folder}")


@pytest.mark.parametrize("text", ["", "null", "\x00", "\ud800", DEEP, f'{{"model_cfg": {HUGE}}}', '{"model_cfg": {}}'])
def test_a_configuration_that_is_no_configuration_is_refused(folder, text):
    (folder / CONFIG).write_bytes(text.encode("utf-8", "surrogatepass"))
    assert "has no model_cfg as open_clip writes it" in refusal(str(folder))


def test_every_configuration_that_open_clip_has_is_taken(tmp_path):
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        (tmp_path / CONFIG).write_text(json.dumps({"model_cfg": config}))
        assert read_config(tmp_path / CONFIG)["model_cfg"] == config


def changed(**weights):
    """Writes the weights again with some of them changed."""

    def change(folder: Path):
        state = load_file(folder / WEIGHTS)
        save_file({name: weights.get(name, lambda x: x)(value) for name, value in state.items()}, folder / WEIGHTS)

    return change


def pack(text: str) -> bytes:
    return gzip.compress(text.encode())


def replaced(name: str, content: bytes):
    return lambda folder: (folder / name).write_bytes(content)


def special(name: str, make):
    def change(folder: Path):
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return change


def lines(folder: Path) -> list[str]:
    return gzip.decompress((folder / MERGES).read_bytes()).decode().split("\n")


NAN = float("nan")
FILES = {
    "nan": (changed(**{"logit_scale": lambda x: x * NAN}), "infinite or no numbers (logit_scale say)"),
    "inf": (changed(text_projection=lambda x: x / 0), "infinite or no numbers (text_projection say)"),
    "scale": (changed(logit_scale=lambda x: x + 1000), "answers with zeros or what is no number"),
    "zeros": (changed(text_projection=lambda x: x * 0), "answers with zeros or what is no number"),
    "variance": (changed(**{"visual.bn1.running_var": lambda x: x - 9}), "answers with zeros or what is no number"),
    "shape": (changed(text_projection=lambda x: x[:, :9].clone()), "size mismatch for text_projection"),
    "no weights in it": (lambda folder: save_file({}, folder / WEIGHTS), ""),
    "cut weights": (lambda folder: os.truncate(folder / WEIGHTS, 1_000_000), "cannot load"),
    "empty weights": (replaced(WEIGHTS, b""), "no weights"),
    "huge head": (replaced(WEIGHTS, b"\xff" * 2_000_000), "cannot load"),
    "a list": (lambda folder: (torch.save([1], folder / "x.bin"), (folder / WEIGHTS).unlink()), ""),
    "empty merges": (replaced(MERGES, pack("")), "needed are 4,096 different pairs"),
    "merges of nothing": (replaced(MERGES, b""), "different pairs"),
    "no gzip": (replaced(MERGES, b"abc"), "is damaged"),
    "cut gzip": (lambda folder: os.truncate(folder / MERGES, 5000), "is damaged"),
    "cut merges": (lambda f: (f / MERGES).write_bytes(pack("\n".join(lines(f)[:2000]))), "has 1,999 lines of merges"),
    "twice": (lambda f: (f / MERGES).write_bytes(pack("\n".join([*lines(f)[:-1], lines(f)[1]]))), "different pairs"),
    "bomb": (replaced(MERGES, gzip.compress(bytes(200_000_000))), "different pairs"),
    "pipe as weights": (special(WEIGHTS, os.mkfifo), "is no ordinary file"),
    "pipe as merges": (special(MERGES, os.mkfifo), "is no ordinary file"),
    "pipe as configuration": (special(CONFIG, os.mkfifo), "not a regular file"),
    "pipe as tokenizer": (special("tokenizer.json", os.mkfifo), "is no ordinary file"),
    "zeros as configuration": (special(CONFIG, lambda path: path.symlink_to("/dev/zero")), "not a regular file"),
    "zeros as weights": (special(WEIGHTS, lambda path: path.symlink_to("/dev/zero")), "is no ordinary file"),
    "link to nothing": (special(WEIGHTS, lambda path: path.symlink_to("gone")), "is no ordinary file"),
    "folder as configuration": (special(CONFIG, Path.mkdir), "not a regular file"),
    "folder as weights": (special(WEIGHTS, Path.mkdir), ""),
    "large configuration": (lambda folder: os.truncate(folder / CONFIG, 10**12), "more than 4,194,304 bytes"),
}


@pytest.mark.parametrize(("change", "message"), FILES.values(), ids=FILES)
def test_a_folder_that_is_wrong_is_refused_in_one_line_and_at_once(folder, change, message):
    change(folder)
    assert message in refusal(f"local-dir:{folder}")


def test_code_that_comes_with_a_model_is_neither_run_nor_asked_for(folder, tmp_path, monkeypatch):
    """AutoTokenizer and AutoConfig would ask in the terminal whether to run it."""
    pytest.importorskip("transformers")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    trace = tmp_path / "was here"
    (folder / "evil.py").write_text(f"open({str(trace)!r}, 'w')\nclass T: pass\n")
    mapped = {"auto_map": {"AutoTokenizer": ["evil.T", None], "AutoConfig": "evil.T"}, "tokenizer_class": "T"}
    for name in ("tokenizer_config.json", "config.json"):
        (folder / name).write_text(json.dumps(mapped | {"model_type": "evil"}))
    content = json.loads((folder / CONFIG).read_text()) | {"steer": {}}
    content["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "org/evil"
    (folder / CONFIG).write_text(json.dumps(content))
    refusal(str(folder))
    content["model_cfg"]["text_cfg"] |= {"hf_model_name": folder.name, "hf_tokenizer_name": None}
    (folder / CONFIG).write_text(json.dumps(content))
    monkeypatch.chdir(folder.parent)
    refusal(str(folder))
    assert not trace.exists()


@pytest.mark.parametrize("text", ["\ud800 cat", "a\x00b", "\u202ecat", "", " ", "a" * 1_000_000, "\U0001f408" * 99_999])
def test_a_caption_of_any_characters_has_tokens(text):
    towers = build(EMOJI)
    assert towers.tokenize([text]).shape == towers.tokenizer([text]).shape == (1, 16)


def test_a_file_of_weights_is_checked_like_a_folder(tmp_path, monkeypatch):
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-B-32", TINY)
    state = open_clip.CLIP(**json.loads(json.dumps(TINY))).state_dict()
    state["ln_final.weight"][3] = NAN
    save_file(state, tmp_path / "w.safetensors")
    assert "infinite or no numbers (ln_final.weight say)" in refusal(f"ViT-B-32={tmp_path / 'w.safetensors'}")
    for name, make in (("pipe.pt", os.mkfifo), ("zero.pt", lambda path: path.symlink_to("/dev/zero"))):
        make(tmp_path / name)
        assert "there is no file" in refusal(f"ViT-B-32={tmp_path / name}")


SHARD = Shard("000.tar", "", 10240, 4)


@pytest.fixture
def cache(tmp_path) -> Cache:
    cache = Cache.make(tmp_path / "cache", Manifest("ref", {"arch": "a"}, 8, 14.0))
    cache.write(SHARD, torch.ones(4, 2, 8), torch.ones(4, dtype=torch.bool), {})
    return cache


def claimed_reasons(reasons: str):
    def change(path: Path):
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name).clone() for name in ("features", "present")}
            metadata = file.metadata() | {"reasons": reasons, "checksum": _checksum(tensors, reasons)}
        path.write_bytes(save(tensors, metadata))

    return change


SIDE_FILES = {
    "pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "zeros": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
    "folder": lambda path: (path.unlink(), path.mkdir()),
    "empty": lambda path: path.write_bytes(b""),
    "sparse": lambda path: os.truncate(path, 10**12),
    "huge head": lambda path: path.write_bytes(b"\xff" * 8 + bytes(1000)),
    "foreign": lambda path: save_file({"x": torch.ones(3)}, path),
    "count": claimed_reasons('{"no caption": 1000000000000}'),
    "digits": claimed_reasons(f'{{"no caption": {HUGE}}}'),
    "deep": claimed_reasons(DEEP),
    "controls": claimed_reasons('{"\\u202e\\u0000": 1}'),
    "many": claimed_reasons(json.dumps({str(number): 0 for number in range(1000)})),
    "long": claimed_reasons(json.dumps({"a" * 1000: 1})),
}


@pytest.mark.parametrize("change", SIDE_FILES.values(), ids=SIDE_FILES)
def test_a_file_of_features_that_is_wrong_is_not_there_and_is_made_again(cache, change):
    change(cache.path(SHARD))
    again = Cache.open(cache.folder, ref="ref")
    assert again.reasons(SHARD) is None and again.fault(SHARD) == "damaged"
    assert not again.present([(SHARD, 1)]).any()
    if not cache.path(SHARD).is_dir():
        cache.write(SHARD, torch.ones(4, 2, 8), torch.ones(4, dtype=torch.bool), {})
        assert cache.present([(SHARD, 1)]).all()


def manifest(**change):
    """Writes a manifest with the right hash, which anybody can compute."""

    def write(path: Path):
        content = json.loads(path.read_text()) | change
        content["key"] = short_hash({k: v for k, v in content.items() if k not in ("ref", "format", "key")})
        path.write_text(json.dumps(content))

    return write


MANIFESTS = {
    "pipe": (lambda path: (path.unlink(), os.mkfifo(path)), "is no cache of features"),
    "zeros": (lambda path: (path.unlink(), path.symlink_to("/dev/zero")), "is no cache of features"),
    "folder": (lambda path: (path.unlink(), path.mkdir()), "is no cache of features"),
    "sparse": (lambda path: os.truncate(path, 10**12), "is no cache of features"),
    "deep": (lambda path: path.write_text(DEEP), "is damaged"),
    "digits": (lambda path: path.write_text(f'{{"width": {HUGE}}}'), "is damaged"),
    "width": (manifest(width=10**12), "is damaged"),
    "no width": (manifest(width=0), "is damaged"),
    "scale": (manifest(scale=float("nan")), "is damaged"),
    "model": (manifest(model=[]), "is damaged"),
    "ref": (manifest(ref=None), "is damaged"),
    "field": (manifest(caption_field=3), "is damaged"),
}


@pytest.mark.parametrize(("change", "message"), MANIFESTS.values(), ids=MANIFESTS)
def test_a_cache_that_is_wrong_is_refused_in_one_line_and_at_once(cache, change, message):
    change(cache.folder / MANIFEST)
    with pytest.raises(UserError) as caught:
        Cache.open(cache.folder, ref="ref")
    assert message in str(caught.value) and str(caught.value).isprintable()


def test_whoever_waits_for_others_says_so_and_does_not_wait_for_ever(tars, tmp_path, monkeypatch, capsys):
    for name, seconds in (("WAIT", 0.01), ("ANNOUNCED", 0.02), ("PATIENCE", 0.2)):
        monkeypatch.setattr(filling, name, seconds)
    towers, shards = load_reference(f"local-dir:{BUNDLE}"), Shards.open(tars(1))
    cache = Cache.make(tmp_path / "features", Manifest.of(towers, ref="ref"))
    claim = cache.claim(shards.index[0])
    claim.parent.mkdir()
    with FileLock(claim):
        assert filling.fill(cache, towers, shards).shards == 1
    assert capsys.readouterr().err.count("waiting for other processes, which are at work on 1 shards") == 1


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir])
def test_a_claim_that_is_no_file_stops_nobody(tars, tmp_path, make):
    towers, shards = load_reference(f"local-dir:{BUNDLE}"), Shards.open(tars(1))
    cache = Cache.make(tmp_path / "features", Manifest.of(towers, ref="ref"))
    claim = cache.claim(shards.index[0])
    claim.parent.mkdir()
    make(claim)
    assert filling.fill(cache, towers, shards).shards == 1


NAMES = [
    "",
    " ",
    "~nosuchuser/x",
    "local-dir:~nosuchuser/x",
    "a\x00b",
    "local-dir:a\x00b",
    "\udcff\udcfe",
    "x" * 100_000,
]
NAMES += [
    "/dev/zero",
    "hf-hub:../../x",
    "hf-hub:a/b/c",
    "hf-hub:",
    "ViT-B-32=",
    "ViT-B-32=~nosuchuser/x",
    "=x",
    ",",
    "/",
    ":",
]


@pytest.mark.parametrize("name", NAMES, ids=[ascii(name)[:30] for name in NAMES])
def test_a_name_of_any_letters_is_refused_in_one_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        load_reference(name)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
