"""Shards: numbers that stay, bytes as webdataset reads them, and one clear line for every broken tar."""

import io
import os
import pickle
import tarfile
from typing import Any

import pytest
from PIL import Image
from webdataset.tariterators import group_by_keys, tar_file_iterator
from webdataset.writer import TarWriter

from steering.clip.images import Undecodable
from steering.clip.shards import Shards, expand, scan
from steering.errors import RunError, UserError


def png(colour="red"):
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(stream, "PNG")
    return stream.getvalue()


def write(path, samples):
    """A tar by webdataset; each sample is a key and its members. With no time of its own a member is one header."""
    with open(path, "wb") as file, TarWriter(file, encoder=False, mtime=0) as tar:
        for key, members in samples:
            tar.write({"__key__": key, **members})
    return path


def pairs(path, keys):
    return write(path, [(key, {"png": png(), "txt": f"caption of {key}".encode()}) for key in keys])


def write_files(path, names, form=tarfile.PAX_FORMAT):
    """A tar by the standard library: a file of its own name for every name."""
    with tarfile.open(path, "w", format=form) as tar:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = len(name.encode())
            tar.addfile(entry, io.BytesIO(name.encode()))
    return path


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def test_numbers_count_unusable_samples_too(tmp_path):
    write(
        tmp_path / "0.tar", [("a", {"png": png(), "txt": b"a"}), ("b", {"cls": b"3"}), ("c", {"png": b"", "txt": b"c"})]
    )
    pairs(tmp_path / "1.tar", ["d"])
    shards = Shards.open(str(tmp_path / "{0..1}.tar"))
    assert [shards.name(i).split()[0] for i in range(len(shards))] == ["a", "b", "c", "d"]
    assert shards.first == [0, 3, 4]
    assert shards.caption(3) == "caption of d"


def test_numbers_stay_when_shards_are_added_or_the_folder_moves(tmp_path):
    folder = tmp_path / "here"
    folder.mkdir()
    pairs(folder / "s-8.tar", ["a", "b"])
    pairs(folder / "s-9.tar", ["c"])
    before = [Shards.open(f"{folder}/*.tar").caption(i) for i in range(3)]
    pairs(folder / "s-10.tar", ["d"])  # sorted as text it would come first
    folder.rename(tmp_path / "there")
    after = Shards.open(f"{tmp_path}/there/*.tar")
    assert [after.caption(i) for i in range(4)] == [*before, "caption of d"]


def test_every_kind_of_pattern_names_the_same_shards_in_its_own_order(tmp_path, monkeypatch):
    for name in ("a0.tar", "a1.tar", "b.tar"):
        pairs(tmp_path / name, ["k"])
    monkeypatch.chdir(tmp_path)
    assert expand("a{0..1}.tar") == expand("a*.tar") == expand("a0.tar::a1.tar") == ["a0.tar", "a1.tar"]
    assert expand(["b.tar", tmp_path / "a0.tar"]) == ["b.tar", str(tmp_path / "a0.tar")]
    assert expand("{b,a*}.tar") == ["b.tar", "a0.tar", "a1.tar"]


def test_a_path_with_braces_in_it_is_that_path(tmp_path):
    path = pairs(tmp_path / "odd{1,2}[x].tar", ["a"])
    assert len(Shards.open(path)) == 1


def test_members_are_the_bytes_that_webdataset_reads(tmp_path):
    names = ["x/a.b/1.jpg", "x/a.b/1.txt", "x/a.b/1.SEG.png", "2.txt", "2.jpg", ".hidden.jpg", "noextension"]
    names += ["__index__.json", "sub/__meta__.json", "./3.jpg", "./3.json", "4.", "2.jpg"]
    write_files(tmp_path / "0.tar", names)
    with open(tmp_path / "0.tar", "rb") as stream:
        file: Any = stream  # webdataset says that it wants a TarFile, which it opens itself
        samples = list(group_by_keys({**member, "__url__": ""} for member in tar_file_iterator(file)))
    theirs = [(s["__key__"], {k: v for k, v in s.items() if not k.startswith("__")}) for s in samples]
    shards = Shards([scan(str(tmp_path / "0.tar"))])
    assert [(shards.name(i).split(" in ")[0], shards.read(i)) for i in range(len(shards))] == theirs


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_offsets_are_those_of_the_standard_library(tmp_path, form):
    names = ["a.jpg", "d" * 90 + "/" + "e" * 60 + ".txt", "caf\u00e9/\u732b.txt"]
    names += [] if form == tarfile.USTAR_FORMAT else ["n" * 300 + ".txt", "x/" * 120 + "y.jpg"]
    path = write_files(tmp_path / "0.tar", names, form)
    with tarfile.open(path, "a", format=form) as tar:
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE):
            entry = tarfile.TarInfo("folder.d")
            entry.type, entry.linkname = kind, "l" * (90 if form == tarfile.USTAR_FORMAT else 200)
            tar.addfile(entry)
        tar.addfile(tarfile.TarInfo("last.txt"))
    with tarfile.open(path) as tar:
        theirs = [(m.name.partition(".")[0], m.offset_data, m.size) for m in tar if m.isreg()]
    shard = scan(str(path))
    assert list(zip(shard.keys, shard.offsets, shard.sizes, strict=True)) == theirs


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_members_beyond_eight_gigabytes_are_found(tmp_path, form):
    path, size = tmp_path / "0.tar", 9 << 30
    big, small = tarfile.TarInfo("a.jpg"), tarfile.TarInfo("a.txt")
    big.size, small.size = size, 2
    with open(path, "wb") as file:  # with a hole: it takes no space
        file.write(big.tobuf(form))
        file.seek(size, os.SEEK_CUR)
        file.write(small.tobuf(form) + b"hi".ljust(512, b"\0") + bytes(1024))
    shards = Shards([scan(str(path))])
    assert shards.caption(0) == "hi"


def test_payloads_are_not_read_by_opening(tmp_path, monkeypatch):
    path = pairs(tmp_path / "0.tar", [f"{i}" for i in range(20)])
    read = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, place: read.append(size) or pread(file, size, place))
    Shards.open(path)
    assert read == [512] * (1 + 2 * 20 + 1)  # the first header twice, then the end mark


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


def test_a_pickled_copy_and_more_shards_than_open_files_read_the_same(tmp_path):
    for i in range(5):
        pairs(tmp_path / f"{i}.tar", [f"{i}"])
    shards = Shards.open(f"{tmp_path}/*.tar")
    shards._files.most = 2
    captions = [shards.caption(i) for i in (0, 1, 2, 3, 4, 0, 4, 2)]
    assert len(shards._files.files) == 2
    copy = pickle.loads(pickle.dumps(shards))
    assert not copy._files.files
    assert [copy.caption(i) for i in (0, 1, 2, 3, 4, 0, 4, 2)] == captions


def test_what_is_named_wrongly_is_refused_in_one_line(tmp_path):
    path = pairs(tmp_path / "0.tar", ["a"])
    cases = {
        f"{tmp_path}/{{0..9}}.tar": r"no shard .*1.tar \(nor 8 others of the 10 in .*\): correct the name",
        f"{tmp_path}/x*.tar": r"no shard .*x\*.tar: correct the name",
        f"{tmp_path}/{{0..9.tar": "unbalanced braces",
        str(tmp_path): r"is a folder: name its shards, for example .*\*.tar",
        "pipe:cat 0.tar": "only tars on this machine",
        "https://example.org/0.tar": "only tars on this machine",
        f"{path}::{path}": "named 2 times",
        "": "no shards given",
    }
    for pattern, message in cases.items():
        with pytest.raises(UserError, match=message) as error:
            Shards.open(pattern)
        one_line(error)


def test_files_that_are_no_tars_are_refused_in_one_line(tmp_path):
    pairs(tmp_path / "0.tar", ["a"])
    with tarfile.open(tmp_path / "packed", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"))
    contents = {
        b"": r"is empty \(0 bytes\)",
        b"<html>404</html>": "is not a tar",
        b"<html>404</html>" * 100: "is not a tar",
        (tmp_path / "packed").read_bytes().ljust(600, b"\0"): "is compressed",
        bytes(10240): "a tar without samples",
        write_files(tmp_path / "x", ["README", "LICENSE"]).read_bytes(): "a tar without samples",
        write_files(tmp_path / "x", ["a.jpg", "a.txt", "a.jpg"]).read_bytes(): "holds a.jpg twice",
    }
    for content, message in contents.items():
        (tmp_path / "1.tar").write_bytes(content)
        with pytest.raises(UserError, match=f"1.tar .*{message}|1.tar {message}") as error:
            Shards.open(f"{tmp_path}/{{0..1}}.tar")
        one_line(error)


def test_a_tar_cut_anywhere_is_noticed_with_the_whole_samples_counted(tmp_path):
    """A sample is two members, a header and a block each: 2,048 bytes."""
    whole = pairs(tmp_path / "whole.tar", "abc").read_bytes()
    path = tmp_path / "0.tar"
    for size in range(512, 3 * 2048 + 1, 512):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"0\.tar is cut short: it ends at byte") as error:
            Shards.open(path)
        told = int(one_line(error).split("after ")[1].split()[0])
        # While there is one sample alone it is not called whole: it might have had more members.
        assert told == size // 2048 or (size < 4096 and told == 0)


def test_a_damaged_header_is_noticed(tmp_path):
    content = bytearray(pairs(tmp_path / "0.tar", "abc").read_bytes())
    content[4096 + 5] ^= 1
    (tmp_path / "0.tar").write_bytes(content)
    with pytest.raises(UserError, match=r"damaged: there is no tar header at byte 4,096, after 2 whole samples"):
        Shards.open(tmp_path / "0.tar")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            {"jpg": b"", "cls": b"1"},
            r"no captions: it holds .cls .jpg \(JSON fields: none\); needed is .txt or JSON field",
        ),
        ({"jpg": b"", "json": b'{"alt": "x", "url": "y"}'}, r"JSON fields: alt, url\)"),
        ({"txt": b"", "v2.jpg": b""}, r"no pictures: it holds .txt .v2.jpg; needed is one of .jpg .jpeg"),
        ({"pyd": b""}, r"no pictures: it holds nothing that is read"),
    ],
)
def test_a_shard_without_pairs_names_what_it_has_and_what_is_needed(tmp_path, members, message):
    path = write(tmp_path / "0.tar", [("a", members), ("b", members)])
    with pytest.raises(UserError, match=message) as error:
        Shards.open(path)
    one_line(error)


def test_a_named_caption_field_that_is_missing_is_told(tmp_path):
    path = write(tmp_path / "0.tar", [("a", {"png": png(), "txt": b"a", "json": b'{"alt": "x"}'})])
    with pytest.raises(UserError, match=r"JSON fields: alt\); needed is JSON field title"):
        Shards.open(path, caption_field="title")


def test_a_shard_that_changes_under_a_run_ends_it_in_one_line(tmp_path):
    path = pairs(tmp_path / "0.tar", "ab")
    shards = Shards.open(path)
    shards.caption(0)
    with open(path, "r+b") as file:
        file.truncate(2048)
    with pytest.raises(RunError, match="became shorter") as error:
        shards.caption(1)
    one_line(error)
    path.unlink()
    with pytest.raises(RunError, match=r"could not be read: No such file"):
        pickle.loads(pickle.dumps(shards)).caption(0)
