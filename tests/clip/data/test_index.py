"""The manifest: numbers that stay, faults that are told, and counts that others left."""

import json
import os
import shutil
import tarfile
from multiprocessing import get_context
from pathlib import Path

import pytest
from shard_files import pairs, write_files

from steering.clip import commands
from steering.clip.data import index
from steering.clip.data.images import Undecodable
from steering.clip.data.shards import Shards
from steering.errors import UserError


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def captions(pattern, **options):
    shards = Shards.open(pattern, **options)
    return [shards.caption(i).removeprefix("caption of ") for i in range(len(shards))]


def make_index(pattern, **options):
    """What ``steer index`` does."""
    commands.index(str(pattern), **options)


def test_numbers_stay_when_the_folder_moves_and_shards_are_added_wherever_they_sort(tmp_path):
    (tmp_path / "here").mkdir()
    pairs(tmp_path / "here/s-8.tar", "ab")
    pairs(tmp_path / "here/s-9.tar", "c")
    assert captions(f"{tmp_path}/here/*.tar") == ["a", "b", "c"]
    pairs(tmp_path / "here/s-1.tar", "d")
    (tmp_path / "here").rename(tmp_path / "there")
    assert captions(f"{tmp_path}/there/*.tar") == ["a", "b", "c", "d"]
    assert captions(f"{tmp_path}/there/s-{{1,9}}.tar") == ["c", "d"], "a part has numbers of its own, in that order"


def test_a_source_that_grows_leaves_the_numbers_of_the_next_one_alone(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        pairs(tmp_path / name / "0.tar", [f"{name}0"])  # equal names of shards, and
    pattern = f"{tmp_path}/a/*.tar::{tmp_path}/b/*.tar"
    assert captions(pattern) == ["a0", "b0"]
    pairs(tmp_path / "a/1.tar", ["b0"])  # equal keys
    shards = Shards.open(pattern)
    assert captions(pattern) == ["a0", "b0", "b0"]
    assert [shard.name for shard in shards.index] == ["0.tar", "../b/0.tar", "1.tar"]
    assert [(shard.first, shard.count, shard.part) for shard in shards.index] == [(0, 1, 0), (1, 1, 1), (2, 1, 0)]
    assert shards.locate(2) == (shards.index[2], 0)


def test_shards_that_change_or_disappear_are_refused_until_the_index_is_rebuilt(tmp_path):
    for name in "012":
        pairs(tmp_path / f"{name}.tar", name)
    pattern = f"{tmp_path}/*.tar"
    captions(pattern)
    kept = (tmp_path / "1.tar").read_bytes()
    for change, what in (
        (lambda: pairs(tmp_path / "1.tar", "xyzuvw"), "changed"),
        ((tmp_path / "1.tar").unlink, "gone"),
    ):
        change()
        with pytest.raises(UserError, match=rf"1.tar .*{what} since .*: put it back .* steer index --rebuild") as error:
            Shards.open(pattern)
        one_line(error)
    (tmp_path / "1.tar").write_bytes(kept)
    assert captions(pattern) == ["0", "1", "2"]
    (tmp_path / "1.tar").unlink()
    make_index(pattern, rebuild=True)
    assert captions(pattern) == ["0", "2"]
    assert len(list((tmp_path / ".steer-index").glob("offsets-*"))) == 1


@pytest.mark.parametrize("reported", [False, True])
def test_another_shard_of_the_same_size_is_refused(tmp_path, reported):
    for name in "01":
        pairs(tmp_path / f"{name}.tar", "ab")
    if reported:
        (tmp_path / "sizes.json").write_text(json.dumps({"0.tar": 2, "1.tar": 2}))
    pattern = f"{tmp_path}/*.tar"
    before = Shards.open(pattern)
    kept = (tmp_path / "1.tar").read_bytes()
    pairs(tmp_path / "1.tar", "xy")
    assert len(kept) == (tmp_path / "1.tar").stat().st_size
    with pytest.raises(UserError, match=r"1.tar has changed since .*: put it back .* steer index --rebuild") as error:
        Shards.open(pattern)
    one_line(error)
    (tmp_path / "1.tar").write_bytes(kept)
    assert captions(pattern) == ["a", "b", "a", "b"] and Shards.open(pattern).fingerprint == before.fingerprint
    pairs(tmp_path / "1.tar", "xy")
    make_index(pattern, rebuild=True)
    assert captions(pattern) == ["a", "b", "x", "y"] and Shards.open(pattern).fingerprint != before.fingerprint


def test_a_manifest_without_what_later_ones_hold_is_used(tmp_path):
    pairs(tmp_path / "0.tar", "ab")
    captions(tmp_path / "0.tar")
    path = tmp_path / ".steer-index/index.json"
    reported = json.loads(path.read_text())
    for key in ("head", "paired"):
        del reported["shards"][0][key]
    path.write_text(json.dumps(reported))
    pairs(tmp_path / "1.tar", "c")
    assert captions(f"{tmp_path}/*.tar") == ["a", "b", "c"]


def test_a_file_in_place_of_the_manifests_folder_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("STEERING_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    pairs(tmp_path / "data/0.tar", "ab")
    (tmp_path / "data/.steer-index").write_text("mine")
    for _ in range(2):
        assert captions(f"{tmp_path}/data/*.tar") == ["a", "b"]
    assert (tmp_path / "data/.steer-index").read_text() == "mine"
    assert Shards.open(f"{tmp_path}/data/*.tar").manifest.is_relative_to(tmp_path / "cache")


def test_names_that_are_no_utf8_are_indexed(tmp_path, monkeypatch):
    monkeypatch.setenv("STEERING_CACHE", str(tmp_path / "cache"))
    data = tmp_path / os.fsdecode(b"\xff")
    data.mkdir()
    pairs(data / os.fsdecode(b"\xfe.tar"), "ab")
    (data / ".steer-index").write_text("in the way")
    for _ in range(2):
        assert captions(f"{data}/*.tar") == ["a", "b"]


def test_all_faulty_shards_are_named_and_the_good_ones_remembered(tmp_path, monkeypatch):
    for name in range(6):
        pairs(tmp_path / f"{name}.tar", f"{name}")
    for name in (1, 2, 4, 5):
        (tmp_path / f"{name}.tar").write_bytes(b"<html>")
    with pytest.raises(UserError) as error:
        Shards.open(f"{tmp_path}/*.tar")
    assert one_line(error).startswith(f"4 of 6 shards cannot be used: {tmp_path}/1.tar is not a tar")
    # A message is cut to 600 characters, whatever the length of its paths.
    assert "/2.tar" in one_line(error) and "/3.tar" not in one_line(error)
    monkeypatch.setattr(index, "scan", None)
    assert captions(f"{tmp_path}/{{0,3}}.tar") == ["0", "3"]


def test_the_whole_samples_of_a_faulty_shard_are_used_where_that_is_allowed(tmp_path):
    """A sample is two members, a header and a block each: 2,048 bytes."""
    pairs(tmp_path / "0.tar", "abc")
    (tmp_path / "1.tar").write_bytes(pairs(tmp_path / "1.tar", "def").read_bytes()[: 2 * 2048 + 700])
    (tmp_path / "2.tar").write_bytes(b"")
    pattern = f"{tmp_path}/{{0..3}}.tar"
    assert captions(pattern, bad_shards=True) == ["a", "b", "c", "d", "e"]
    shards = Shards.open(pattern, bad_shards=True)
    assert [shard.count for shard in shards.index] == [3, 2, 0, 0]
    with pytest.raises(
        UserError, match=r"2 of 3 shards cannot be used: .*1.tar is cut short.*; .*2.tar is empty.*rebuild"
    ):
        Shards.open(f"{tmp_path}/{{0..2}}.tar")


@pytest.mark.parametrize("reported", ["sizes.json", "{}_stats.json"])
def test_of_a_source_whose_counts_are_told_the_first_shard_alone_is_counted(tmp_path, monkeypatch, reported):
    for name, keys in (("0.tar", "abc"), ("1.tar", "de")):
        pairs(tmp_path / name, keys)
        content = {"0.tar": 3, "1.tar": 2, "successes": len(keys)}
        (tmp_path / reported.format(name[0])).write_text(json.dumps(content))
    scanned, scan = [], index.scan
    monkeypatch.setattr(index, "scan", lambda file: scanned.append(scan(file)) or scanned[-1])
    assert len(Shards.open(f"{tmp_path}/*.tar")) == 5 and len(scanned) == 1
    assert captions(f"{tmp_path}/*.tar") == ["a", "b", "c", "d", "e"]
    monkeypatch.setattr("steering.clip.data.shards.scan", None)
    assert captions(f"{tmp_path}/*.tar") == ["a", "b", "c", "d", "e"], "another process finds the offsets"


def test_what_an_interrupted_process_left_behind_is_not_believed(tmp_path):
    pairs(tmp_path / "0.tar", "abc")
    captions(tmp_path / "0.tar")
    with open(next((tmp_path / ".steer-index").glob("offsets-*")), "ab") as file:
        file.write(b"\x07\x00\x00\x00\x00\x00\x00\x00" * 20)
    pairs(tmp_path / "1.tar", "de")
    (tmp_path / "sizes.json").write_text(json.dumps({"1.tar": 2}))
    assert captions(f"{tmp_path}/*.tar") == ["a", "b", "c", "d", "e"]


NO_COUNTS = [
    "",
    "[]",
    '{"0.tar": "5"}',
    '{"0.tar": -1}',
    '{"0.tar": true}',
    '{"0.tar": 1e12}',
    '{"0.tar": 1' + "0" * 12 + "}",
]
NO_COUNTS += ["[" * 200_000, '{"0.tar": ' + "9" * 5000 + "}", '{"0.tar": 0}', "\xff"]


@pytest.mark.parametrize("text", NO_COUNTS)
def test_what_is_no_count_is_not_believed(tmp_path, text):
    (tmp_path / "sizes.json").write_text(text, encoding="latin-1")
    (tmp_path / "0_stats.json").write_text(text.replace("0.tar", "successes"), encoding="latin-1")
    pairs(tmp_path / "0.tar", "ab")
    pairs(tmp_path / "00.tar", "ab")
    assert captions(f"{tmp_path}/*.tar") == ["a", "b", "a", "b"]


@pytest.mark.parametrize("reported", [2, 5])
def test_a_side_file_that_is_wrong_about_the_first_shard_of_a_source_is_not_believed(tmp_path, reported, capfd):
    pairs(tmp_path / "0.tar", "abc")
    pairs(tmp_path / "1.tar", "def")
    (tmp_path / "sizes.json").write_text(json.dumps({"0.tar": reported, "1.tar": reported}))
    assert captions(f"{tmp_path}/*.tar") == ["a", "b", "c", "d", "e", "f"]
    said = f"0.tar is said to hold {reported} samples and holds 3, which counts"
    assert said in capfd.readouterr().err
    make_index(f"{tmp_path}/*.tar", rebuild=True)
    assert said in capfd.readouterr().out


@pytest.mark.parametrize("reported", [2, 5])
def test_a_count_that_is_wrong_further_on_is_told_as_soon_as_the_shard_was_read(tmp_path, reported, capfd):
    for name in "012":
        pairs(tmp_path / f"{name}.tar", "abc")
    (tmp_path / "sizes.json").write_text(json.dumps({"0.tar": 3, "1.tar": reported, "2.tar": 3}))
    shards = Shards.open(f"{tmp_path}/*.tar")
    assert len(shards) == reported + 6 and shards.caption(reported + 3) == "caption of a"
    assert capfd.readouterr().err == ""
    assert shards.caption(4) == "caption of b"
    if reported == 5:
        with pytest.raises(Undecodable, match="not in its shard"):
            shards.picture(6)
        assert shards.name(6) == f"sample 3 in {tmp_path}/1.tar"
    assert len(Shards.open(f"{tmp_path}/*.tar")) == len(shards), "numbers stay"
    note = "more" if reported == 2 else "fewer"
    assert f"1.tar is said to hold {reported} samples and holds {note}: steer index --rebuild" in capfd.readouterr().err
    make_index(f"{tmp_path}/*.tar")
    assert f"1.tar is said to hold {reported} samples and holds 3: steer index --rebuild" in capfd.readouterr().out
    make_index(f"{tmp_path}/*.tar", rebuild=True)
    assert captions(f"{tmp_path}/*.tar") == [*"abcabcabc"]


@pytest.mark.parametrize("reported", [None, "0", "null"])
def test_a_shard_of_which_every_row_failed_is_no_fault(tmp_path, reported, capfd):
    pairs(tmp_path / "0.tar", "ab")
    tarfile.open(tmp_path / "1.tar", "w").close()
    pairs(tmp_path / "2.tar", "c")
    if reported:
        (tmp_path / "1_stats.json").write_text(f'{{"successes": {reported}}}')
    for _ in range(2):
        assert captions(f"{tmp_path}/*.tar") == ["a", "b", "c"]
    assert capfd.readouterr().err == f"note: {tmp_path}/1.tar holds no samples\n"
    with pytest.raises(UserError, match=r"1.tar holds no samples"):
        Shards.open(tmp_path / "1.tar")


def test_a_folder_that_can_only_be_read_has_its_manifest_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STEERING_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    pairs(tmp_path / "data/1.tar", "a")
    Shards.open(f"{tmp_path}/data/*.tar")
    pairs(tmp_path / "data/0.tar", "b")
    shutil.copytree(tmp_path / "data/.steer-index", tmp_path / "kept")
    monkeypatch.setattr(Path, "mkdir", refusing(Path.mkdir, tmp_path / "data/.steer-index"))
    for _ in range(2):
        assert captions(f"{tmp_path}/data/*.tar") == ["a", "b"], "it begins as the one beside the data"
    assert (tmp_path / "kept/index.json").read_text() == (tmp_path / "data/.steer-index/index.json").read_text()
    assert Shards.open(f"{tmp_path}/data/*.tar").manifest.is_relative_to(tmp_path / "cache")


def refusing(mkdir, folder):
    def make(self, *args, **options):
        if self == folder:
            raise PermissionError(13, "Permission denied")
        return mkdir(self, *args, **options)

    return make


def test_a_damaged_manifest_is_told_and_rebuilt(tmp_path):
    pairs(tmp_path / "0.tar", "abc")
    captions(tmp_path / "0.tar")
    for content in ("{", "[]", '{"version": 99, "shards": [], "offsets": "x"}'):
        (tmp_path / ".steer-index/index.json").write_text(content)
        with pytest.raises(UserError, match=r"index.json is damaged or of another version: steer index --rebuild"):
            Shards.open(tmp_path / "0.tar")
    make_index(tmp_path / "0.tar", rebuild=True)
    assert captions(tmp_path / "0.tar") == ["a", "b", "c"]


def _open(pattern, results):
    results.put(captions(pattern))


@pytest.mark.slow
def test_processes_that_index_at_once_agree(tmp_path):
    for i in range(20):
        pairs(tmp_path / f"{i}.tar", [f"{i}-{k}" for k in range(10)])
    context = get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_open, args=(f"{tmp_path}/*.tar", results)) for _ in range(4)]
    for process in processes:
        process.start()
    result = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert result == [[f"{i}-{k}" for i in range(20) for k in range(10)]] * 4


def test_a_tar_cut_anywhere_is_noticed_with_the_whole_samples_counted(tmp_path):
    """A sample is two members, a header and a block each: 2,048 bytes."""
    full = pairs(tmp_path / "whole.tar", "abc").read_bytes()
    path = tmp_path / "0.tar"
    for size in range(512, 3 * 2048 + 1, 512):
        path.write_bytes(full[:size])
        with pytest.raises(UserError, match=r"0\.tar is cut short: it ends at byte") as error:
            Shards.open(path)
        reported = int(one_line(error).split("after ")[1].split()[0])
        # While there is one sample alone it is not called whole: it might have had more members.
        assert reported == size // 2048 or (size < 4096 and reported == 0)


def test_a_damaged_header_is_noticed(tmp_path):
    content = bytearray(pairs(tmp_path / "0.tar", "abc").read_bytes())
    content[4096 + 5] ^= 1
    (tmp_path / "0.tar").write_bytes(content)
    with pytest.raises(UserError, match=r"damaged: there is no tar header at byte 4,096, after 2 whole samples"):
        Shards.open(tmp_path / "0.tar")


def test_files_that_are_no_tars_are_refused_in_one_line(tmp_path):
    pairs(tmp_path / "0.tar", ["a"])
    with tarfile.open(tmp_path / "packed", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"))
    contents = {
        b"": r"is empty \(0 bytes\)",
        b"<html>404</html>": "is not a tar",
        b"<html>404</html>" * 100: "is not a tar",
        (tmp_path / "packed").read_bytes().ljust(600, b"\0"): "is compressed",
        bytes(20480): "a tar without samples",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n": "is a Git LFS pointer",
        b"/annex/objects/SHA256E-s12345--4d7a.tar\n": "is a Git LFS pointer",
        pairs(tmp_path / "x", "a").read_bytes() * 2: "goes on behind its end mark at byte 2,048",
        write_files(tmp_path / "x", ["README", "LICENSE"]).read_bytes(): "a tar without samples",
        write_files(tmp_path / "x", ["a.jpg", "a.txt", "a.jpg"]).read_bytes(): "holds a.jpg twice",
    }
    for content, message in contents.items():
        (tmp_path / "1.tar").write_bytes(content)
        with pytest.raises(UserError, match=f"1.tar .*{message}|1.tar {message}") as error:
            Shards.open(f"{tmp_path}/{{0..1}}.tar")
        one_line(error)


def test_the_command_prints_what_is_new_and_where_it_is_written(tmp_path, capsys):
    pairs(tmp_path / "0.tar", "abc")
    make_index(tmp_path / "0.tar")
    pairs(tmp_path / "1.tar", "de")
    make_index(f"{tmp_path}/*.tar")
    out = capsys.readouterr().out
    rows = [line.split()[-5:] for line in out.splitlines() if ".tar" in line]
    size = (tmp_path / "0.tar").stat().st_size
    assert rows == [["1", "1", "0", "3", f"{size:,}"], ["2", "1", "0", "5", f"{2 * size:,}"]]
    assert out.count(f"manifest: {tmp_path}/.steer-index/index.json") == 2
