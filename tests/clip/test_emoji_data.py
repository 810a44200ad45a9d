"""The bundled emoji: splits, wrong captions, shards that are whole and always the same."""

import functools
import gc
import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from webdataset.compat import WebDataset

from steering.clip import emoji_data
from steering.clip.emoji_data import BUNDLE, SPLITS, TOKENIZER, concepts, emoji_shard
from steering.errors import RunError, UserError

TRAIN = 6000  # 1,500 concepts with four captions


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def load(folder):
    """Samples of a split, written and read once for all tests of this file, which must not change them."""
    return functools.cache(lambda split, noise=0.0: read(emoji_shard(split, noise=noise, cache=folder)))


@pytest.fixture(scope="module")
def clean(load):
    return load("train")


@pytest.fixture(scope="module")
def noisy(load):
    return load("train", 0.3)


def read(path):
    """Samples of a tar by key, in order: ``{"png": bytes, "txt": str, "json": dict}``."""
    samples = defaultdict(dict)
    with tarfile.open(path) as tar:
        for member in tar:
            key, kind = member.name.split(".")
            content = tar.extractfile(member)
            assert content is not None
            samples[key][kind] = content.read()
    for sample in samples.values():
        sample["txt"] = sample["txt"].decode()
        sample["json"] = json.loads(sample["json"])
    return dict(samples)


def wrong(samples):
    return {key: sample["txt"] for key, sample in samples.items() if sample["json"]["wrong"]}


# ---- the table


def test_a_fifth_of_every_subcategory_is_held_out():
    """1,870 concepts in 98 subcategories; of 13 concepts 2.6 are a fifth, so 3 are held out."""
    members = Counter(concept.subcategory for concept in concepts())
    held_out = Counter(concept.subcategory for concept in concepts() if concept.held_out)
    assert len(concepts()) == 1870 and len(members) == 98 and held_out.total() == 370
    assert all(abs(held_out[name] - 0.2 * size) <= 0.5 for name, size in members.items())


def test_the_reference_knows_train_concepts_only():
    assert Counter(concept.held_out for concept in concepts() if concept.reference) == {False: 600}


def test_every_caption_is_lower_case_ascii_without_doubled_spaces_and_one_concepts_alone():
    captions = [caption for concept in concepts() for caption in concept.captions]
    assert len(set(captions)) == 4 * 1870
    for concept in concepts():
        for text in (*concept.captions, concept.name, concept.subcategory):
            assert text.isascii() and text == " ".join(text.lower().split()), text


# ---- what the shards hold


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_holds_what_it_promises(split, load):
    samples = load(split)
    assert len(samples) == dict(zip(SPLITS, (6000, 2400, 1500, 1500, 370, 370), strict=True))[split]
    for key, sample in samples.items():
        facts = sample["json"]
        concept = concepts()[facts["concept"]]
        assert key == f"{concept.index:04d}-{facts['caption']}"
        assert (facts["emoji"], facts["name"]) == (concept.emoji, concept.name)
        assert (facts["category"], facts["subcategory"]) == (concept.category, concept.subcategory)
        assert sample["txt"] == concept.captions[facts["caption"]] and facts["wrong"] is False
        assert split in ("train", "reference") or sample["txt"] == concept.name
        assert concept.held_out == split.startswith("held_out") and (split != "reference" or concept.reference)


def test_held_out_names_never_appear_in_training(clean, noisy):
    """Neither as a name nor as a keyword; "cat face" is a subcategory too and appears as that."""
    subcategories = {concept.subcategory for concept in concepts()}
    hidden = {concept.name for concept in concepts() if concept.held_out} - subcategories
    assert len(hidden) == 369
    for sample in (*clean.values(), *noisy.values()):
        phrases = sample["txt"].replace("an emoji of ", "").split(": ")[-1].split(", ")
        assert hidden.isdisjoint(phrases), sample["txt"]
        assert sample["json"]["name"] not in hidden


def test_neighbours_in_the_train_shard_are_no_look_alikes(clean):
    """64 of 1,500 concepts drawn with return are 62.7 different ones on average, 16 in the table's order."""
    indices = [sample["json"]["concept"] for sample in clean.values()]
    runs = [len(set(indices[start : start + 64])) for start in range(0, TRAIN - 64, 64)]
    assert min(runs) > 55


def test_pictures_are_white_where_nothing_is_drawn(load):
    for split in ("held_out_google", "held_out_twitter"):
        for sample in load(split).values():
            pixels = np.asarray(Image.open(io.BytesIO(sample["png"])))
            assert pixels.shape == (32, 32, 4)
            assert (pixels[..., :3][pixels[..., 3] == 0] == 255).all()


def test_the_vendors_draw_differently(load):
    google, twitter = load("held_out_google"), load("held_out_twitter")
    assert all(google[key]["png"] != twitter[key]["png"] for key in google)


# webdataset leaves closing the file to the garbage collector, which says so.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_pairs_from_the_shard(folder):
    path = str(emoji_shard("held_out_google", cache=folder))
    data = WebDataset(path, shardshuffle=False).decode("pilrgba").to_tuple("png", "txt", "json")
    pairs = list(data)  # pyright: ignore[reportArgumentType] its annotations lack the iterator
    gc.collect()
    assert len(pairs) == 370
    assert all((picture.size, picture.mode) == ((32, 32), "RGBA") for picture, _, _ in pairs)
    assert all(text == facts["name"] for _, text, facts in pairs)


# ---- wrong captions


@pytest.mark.parametrize("noise", [0.3, 0.2])
def test_exactly_the_asked_share_of_captions_is_wrong(noise, load):
    assert len(wrong(load("train", noise))) == round(noise * TRAIN)


def test_the_same_pairs_are_wrong_in_every_build(noisy):
    """The digest was written down once; it holds for every version of Python, Pillow and webdataset."""
    result = json.dumps(sorted(wrong(noisy).items())).encode()
    assert hashlib.sha256(result).hexdigest()[:16] == "a4fc86639ac7608e"


def test_pairs_wrong_at_a_fifth_are_wrong_alike_at_three_tenths(noisy, load):
    assert wrong(load("train", 0.2)).items() < wrong(noisy).items()


def test_a_wrong_caption_never_belongs_to_the_picture(clean, noisy):
    right = defaultdict(set)
    for sample in clean.values():
        right[sample["png"]].add(sample["txt"])
    for key, text in wrong(noisy).items():
        assert text not in right[noisy[key]["png"]]


def test_a_look_alike_lends_no_caption():
    """All pictures are the same but the one of concept 7, so only its captions would be wrong."""
    pairs = [emoji_data.Pair(concept, 0) for concept in concepts()[:100]]
    pictures = tuple(b"seven" if index == 7 else b"the same" for index in range(100))
    assert emoji_data._foreign(pairs[0], pairs, pictures) is pairs[7]


def test_a_wrong_caption_is_one_that_training_knows(clean, noisy):
    assert set(wrong(noisy).values()) <= {sample["txt"] for sample in clean.values()}


def test_noise_changes_nothing_but_the_wrong_captions(clean, noisy):
    assert list(clean) == list(noisy)
    for key, sample in noisy.items():
        if not sample["json"]["wrong"]:
            assert sample == clean[key]
        assert sample["png"] == clean[key]["png"]


# ---- the cache


@pytest.mark.slow
def test_two_builds_are_byte_identical(folder, tmp_path):
    first = emoji_shard("train", noise=0.3, cache=folder).read_bytes()
    emoji_data._pictures.cache_clear()
    assert emoji_shard("train", noise=0.3, cache=tmp_path).read_bytes() == first


def test_a_shard_that_is_there_is_not_written_again(folder, monkeypatch):
    path = emoji_shard("held_out_google", cache=folder)
    monkeypatch.setattr(emoji_data, "_write", None)
    assert emoji_shard("held_out_google", cache=folder) == path


def test_a_killed_writer_leaves_no_shard(tmp_path, monkeypatch):
    full = emoji_data._samples

    def interrupted(split, count):
        yield next(full(split, count))
        raise KeyboardInterrupt

    monkeypatch.setattr(emoji_data, "_samples", interrupted)
    with pytest.raises(KeyboardInterrupt):
        emoji_shard("held_out_google", cache=tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []

    monkeypatch.setattr(emoji_data, "_samples", full)
    assert len(read(emoji_shard("held_out_google", cache=tmp_path))) == 370


def test_another_bundle_never_reads_old_shards(tmp_path, monkeypatch):
    before = emoji_data._folder(tmp_path)
    shutil.copytree(emoji_data.BUNDLE, tmp_path / "bundle")
    with open(tmp_path / "bundle" / "google.webp", "ab") as file:
        file.write(b"\n")
    monkeypatch.setattr(emoji_data, "BUNDLE", tmp_path / "bundle")
    assert emoji_data._folder(tmp_path) != before


def test_the_cache_is_where_the_user_says(tmp_path, monkeypatch):
    for name in ("STEERING_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert emoji_data._folder(None).parent == tmp_path / ".cache" / "model-steering"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert emoji_data._folder(None).parent == tmp_path / "xdg" / "model-steering"
    monkeypatch.setenv("STEERING_CACHE", "~/own")
    assert emoji_data._folder(None).parent == tmp_path / "own"
    assert emoji_data._folder(tmp_path).parent == tmp_path


def test_a_folder_that_can_not_be_written_to_is_named_with_the_remedy(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(RunError, match=r"held_out_google shard in .*file.*Set STEERING_CACHE to a folder"):
        emoji_shard("held_out_google", cache=tmp_path / "file")


def test_a_user_without_home_is_told_of_steering_cache(monkeypatch):
    for name in ("STEERING_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(RunError, match=r"no home folder .* Set STEERING_CACHE"):
        emoji_shard("train")


@pytest.mark.parametrize(
    ("split", "noise", "message"),
    [
        (
            "seen_gogle",
            0,
            "no split is named 'seen_gogle'; known: train, reference, .*; did you mean seen_google?",
        ),
        ("train", 1.5, "from 0 to 1, got 1.5"),
        ("train", float("nan"), "from 0 to 1, got nan"),
        ("reference", 0.1, "only train has wrong captions; reference takes noise=0, got 0.1"),
        ("held_out_google", 0.3, "only train has wrong captions"),
    ],
)
def test_a_question_without_an_answer_is_refused(split, noise, message, tmp_path):
    with pytest.raises(UserError, match=message):
        emoji_shard(split, noise=noise, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


# ---- tokenizer and licences


@pytest.mark.slow
def test_open_clip_makes_a_vocabulary_of_4610_of_the_merges():
    """512 bytes, 4,096 merges and 2 marks, which come last."""
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer(bpe_path=TOKENIZER)
    assert (tokenizer.vocab_size, tokenizer.sot_token_id, tokenizer.eot_token_id) == (4610, 4608, 4609)
    assert len(tokenizer.encoder) == 4610 and "" not in tokenizer.encoder
    tokens = tokenizer(["grinning face, zebra"], context_length=16)[0].tolist()
    assert tokens[0] == 4608 and 4609 in tokens and max(tokens) < 4610
    assert tokenizer.decode(tokenizer.encode("grinning face, zebra")) == "grinning face , zebra "


def test_the_merges_end_without_a_line_break():
    """open_clip splits at line breaks, and would count an empty merge after the last one."""
    lines = gzip.decompress(Path(TOKENIZER).read_bytes()).decode().split("\n")
    assert len(lines) == 1 + 4096 and all(len(line.split()) == 2 for line in lines[1:])


def test_the_licences_name_everybody_and_every_change():
    texts = "".join((BUNDLE / name).read_text() for name in ("LICENSES.md", "LICENSE-Apache-2.0.txt"))
    for phrase in (
        "Copyright (c) 2013 Cal Henderson",
        "Copyright (c) 2014 Mu-An Chiou",
        "Copyright (c) 2012-2021 Gabriel Ilharco",
        "Copyright (c) 2021 OpenAI",
        "Copyright Twitter, Inc and other contributors",
        "https://creativecommons.org/licenses/by/4.0/",
        "resized from 64 to 32 pixels",
        "END OF TERMS AND CONDITIONS",
    ):
        assert phrase in texts
