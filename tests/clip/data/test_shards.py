"""Shards: numbers that stay, bytes as webdataset reads them, and one clear line for every broken tar."""

import copy
import os

import pytest
from shard_files import pairs, png, write

from steering.clip.data.images import Undecodable
from steering.clip.data.shards import Shards
from steering.clip.data.tar import RECORD
from steering.errors import RunError, UserError


def test_numbers_count_unusable_samples_too(tmp_path):
    write(
        tmp_path / "0.tar", [("a", {"png": png(), "txt": b"a"}), ("b", {"cls": b"3"}), ("c", {"png": b"", "txt": b"c"})]
    )
    pairs(tmp_path / "1.tar", ["d"])
    shards = Shards.open(str(tmp_path / "{0..1}.tar"))
    assert [shards.name(i).split()[0] for i in range(len(shards))] == ["a", "b", "c", "d"]
    assert shards.first == [0, 3, 4]
    assert shards.caption(3) == "caption of d"


def test_payloads_are_not_read_by_opening(tmp_path, monkeypatch):
    path = pairs(tmp_path / "0.tar", [f"{i}" for i in range(20)])
    read = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, index: read.append(size) or pread(file, size, index))
    Shards.open(path)
    headers = [512] * (1 + 2 * 20 + 1)  # the first one twice, then the end mark
    assert read == [4096, *headers, RECORD + 512, 4096], (
        "what follows the end mark, and how it begins, when it is added and when it is compared"
    )
    read.clear()
    shards = Shards.open(path)
    assert read == [4096], "the second time no headers are read"
    read.clear()
    assert shards.caption(7) == "caption of 7" and shards.picture(7) == png() and shards.name(7).startswith("7 in ")
    assert read == [4096, 2048], "a sample is read at once: two headers, two blocks"
    read.clear()
    assert shards.picture(8) == png() and read == [2048], "how a shard begins is looked at once in a process"


def test_members_that_could_run_code_do_not_exist(tmp_path):
    dangers = {kind: b"x" for kind in ("pyd", "pickle", "pkl", "pth", "pt", "npy", "npz", "more.pyd")}
    shards = Shards.open(write(tmp_path / "0.tar", [("a", {"png": png(), "txt": b"a", **dangers})]))
    assert shards.read(0).keys() == {"png", "txt"}


def test_captions_come_from_txt_or_the_named_field(tmp_path):
    members = {"png": png(), "txt": b" plain \n", "json": b'{"caption": "alt", "long": "longer"}'}
    path = write(tmp_path / "0.tar", [("a", members), ("b", {**members, "txt": "\ufefftea".encode()})])
    assert [Shards.open(path).caption(i) for i in (0, 1)] == ["plain", "tea"]
    assert Shards.open(path, caption_field="long").caption(0) == "longer"
    del members["txt"]
    assert Shards.open(write(tmp_path / "1.tar", [("a", members)])).caption(0) == "alt"
    assert Shards.open(tmp_path / "1.tar").info(0)["long"] == "longer"
    assert Shards.open(pairs(tmp_path / "2.tar", ["a"])).info(0) == {}


def test_a_json_field_may_hold_several_captions(tmp_path):
    reported = ['["one", " two "]', '["", "only"]', "[]", "[1]"]
    members = [(f"{i}", {"png": png(), "json": f'{{"caption": {text}}}'.encode()}) for i, text in enumerate(reported)]
    shards = Shards.open(write(tmp_path / "0.tar", members))
    assert shards.captions(0) == ["one", "two"] and shards.caption(0) == "one"
    assert shards.captions(1) == ["only"]
    for number in (2, 3):
        with pytest.raises(Undecodable, match="no caption"):
            shards.captions(number)


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"txt": b"\xff\xfe\xff"}, "caption not in UTF-8"),
        ({"txt": b"  "}, "no caption"),
        ({"json": b"{"}, "broken JSON"),
        ({"json": b"[" * 100_000}, "broken JSON"),
        ({"json": b"[1]"}, "broken JSON"),
        ({"json": b'{"caption": null}'}, "no caption"),
        ({}, "no caption"),
    ],
)
def test_a_sample_without_a_usable_caption_says_why(tmp_path, members, reason):
    shards = Shards.open(
        write(tmp_path / "0.tar", [("a", {"png": png(), "txt": b"a"}), ("b", {"png": png(), **members})])
    )
    with pytest.raises(Undecodable, match=reason):
        shards.caption(1)


def test_a_sample_without_a_picture_says_so(tmp_path):
    shards = Shards.open(write(tmp_path / "0.tar", [("a", {"jpg": png(), "txt": b"a"}), ("b", {"txt": b"b"})]))
    with pytest.raises(Undecodable, match="no picture"):
        shards.picture(1)
    with pytest.raises(IndexError):
        shards.picture(2)
    with pytest.raises(IndexError):
        shards.picture(-1)


def test_a_copy_and_more_shards_than_open_files_read_the_same(tmp_path):
    for i in range(5):
        pairs(tmp_path / f"{i}.tar", [f"{i}"])
    shards = Shards.open(f"{tmp_path}/*.tar")
    shards._files.most = 2
    captions = [shards.caption(i) for i in (0, 1, 2, 3, 4, 0, 4, 2)]
    assert len(shards._files.files) == 2
    other = copy.deepcopy(shards)
    assert not other._files.files
    assert [other.caption(i) for i in (0, 1, 2, 3, 4, 0, 4, 2)] == captions


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            {"jpg": b"", "cls": b"1"},
            r"no captions: it holds .cls .jpg \(JSON fields: none\); needed is .txt or JSON field",
        ),
        ({"jpg": b"", "json": b'{"alt": "x", "url": "y"}'}, r"JSON fields: alt, url\)"),
        ({"txt": b"", "v2.jpg": b""}, r"no pictures: it holds .txt .v2.jpg; needed is one of .jpg .png"),
        ({"pyd": b""}, r"no pictures: it holds nothing that is read"),
    ],
)
def test_a_shard_without_pairs_names_what_it_has_and_what_is_needed(tmp_path, members, message):
    path = write(tmp_path / "0.tar", [("a", members), ("b", members)])
    with pytest.raises(UserError, match=message) as error:
        Shards.open(path)
    assert "\n" not in str(error.value)


def test_a_named_caption_field_that_is_missing_is_told(tmp_path):
    path = write(tmp_path / "0.tar", [("a", {"png": png(), "txt": b"a", "json": b'{"alt": "x"}'})])
    with pytest.raises(UserError, match=r"JSON fields: alt\); needed is JSON field title"):
        Shards.open(path, caption_field="title")


def test_of_a_shard_that_is_replaced_before_it_is_first_read_nothing_is_remembered(tmp_path):
    pairs(tmp_path / "0.tar", "ab")
    kept = pairs(tmp_path / "1.tar", "ab").read_bytes()
    (tmp_path / "sizes.json").write_text('{"0.tar": 2, "1.tar": 2}')
    shards = Shards.open(f"{tmp_path}/*.tar")
    write(tmp_path / "1.tar", [("x", {"png": png(), "txt": b"x", "cls": b"1"})])
    with open(tmp_path / "1.tar", "ab") as file:
        file.truncate(len(kept))
    with pytest.raises(RunError, match=r"1.tar has changed since"):
        shards.caption(2)
    (tmp_path / "1.tar").write_bytes(kept)
    assert Shards.open(f"{tmp_path}/*.tar").caption(3) == "caption of b"


@pytest.mark.parametrize("reported", [False, True])
@pytest.mark.parametrize("first", ["png", "txt"])
def test_a_shard_with_all_pictures_in_front_of_all_captions_is_refused(tmp_path, first, reported):
    kinds = ("png", "txt") if first == "png" else ("txt", "png")
    members = [(f"{i}", {kind: png() if kind == "png" else b"a"}) for kind in kinds for i in range(25)]
    write(tmp_path / "1.tar", members)
    if reported:
        (tmp_path / "sizes.json").write_text('{"1.tar": 50}')
    for _ in range(2):
        with pytest.raises(
            UserError, match=r"1.tar has no picture and caption in any of its first 20 .* one after"
        ) as error:
            Shards.open(tmp_path / "1.tar")
        assert "\n" not in str(error.value)


def test_every_shard_has_to_have_a_pair_among_its_first_samples(tmp_path):
    few = [("x", {"png": png()}), ("y", {"txt": b"a"})]
    write(tmp_path / "0.tar", [*few * 9, ("a", {"png": png(), "json": b'{"caption": "a"}'})])
    pairs(tmp_path / "1.tar", "bc")
    assert len(Shards.open(f"{tmp_path}/*.tar")) == 21
    write(tmp_path / "2.tar", few)
    for _ in range(2):
        with pytest.raises(UserError, match=r"2.tar has no picture and caption"):
            Shards.open(f"{tmp_path}/*.tar")


def test_a_shard_that_changes_under_a_run_ends_it_in_one_line(tmp_path):
    path = pairs(tmp_path / "0.tar", "ab")
    shards = Shards.open(path)
    shards.caption(0)
    with open(path, "r+b") as file:
        file.truncate(2048)
    with pytest.raises(RunError, match=r"0.tar has changed since its headers were read: leave shards alone") as error:
        shards.caption(1)
    assert "\n" not in str(error.value)
    path.unlink()
    with pytest.raises(RunError, match=r"could not be read: No such file"):
        copy.deepcopy(shards).caption(0)


@pytest.mark.parametrize(
    "change", [lambda path: path.unlink(), lambda path: pairs(path, "xyzuvw"), lambda path: pairs(path, "xy")]
)
def test_samples_of_a_shard_that_disappears_or_changes_are_unusable_where_that_is_allowed(tmp_path, change):
    for name in "01":
        pairs(tmp_path / f"{name}.tar", "ab")
    shards = Shards.open(f"{tmp_path}/*.tar", bad_shards=True)
    change(tmp_path / "0.tar")
    for number in (0, 1):
        with pytest.raises(Undecodable, match="shard unreadable"):
            shards.picture(number)
    assert shards.caption(2) == "caption of a"
    assert len(Shards.open(f"{tmp_path}/*.tar", bad_shards=True)) == 4, "and their numbers stay theirs"


def test_a_sample_larger_than_what_is_read_at_once_is_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("steering.clip.data.shards.AT_ONCE", 1024)
    big = {"png": png(), "txt": b"long " * 999, "json": b'{"a": 1}'}
    shards = Shards.open(write(tmp_path / "0.tar", [("a", big), ("b", big)]))
    assert shards.read(1) == big


def test_the_fingerprint_tells_other_samples_apart_not_another_folder(tmp_path):
    (tmp_path / "x").mkdir()
    pairs(tmp_path / "x/0.tar", "ab")
    one = Shards.open(f"{tmp_path}/x/*.tar").fingerprint
    (tmp_path / "x").rename(tmp_path / "y")
    assert Shards.open(f"{tmp_path}/y/*.tar").fingerprint == one
    pairs(tmp_path / "y/1.tar", "c")
    assert Shards.open(f"{tmp_path}/y/*.tar").fingerprint != one
