"""What the user names: every kind of pattern, and one clear line for what is named wrongly."""

import pytest

from steering.clip.data.shards import Shards
from steering.clip.data.sources import expand, matches
from steering.errors import UserError


def touch(*paths):
    for path in paths:
        path.write_bytes(b"")


def urls(pattern, **options):
    return [shard.url for shard in expand(pattern, **options)]


def test_every_kind_of_pattern_names_the_same_shards_in_its_own_order(tmp_path, monkeypatch):
    touch(*(tmp_path / name for name in ("a0.tar", "a1.tar", "b.tar")))
    monkeypatch.chdir(tmp_path)
    assert urls("a{0..1}.tar") == urls("a*.tar") == urls("a0.tar::a1.tar") == ["a0.tar", "a1.tar"]
    assert urls(["b.tar", tmp_path / "a0.tar"]) == ["b.tar", str(tmp_path / "a0.tar")]
    assert urls("{b,a*}.tar") == ["b.tar", "a0.tar", "a1.tar"]
    assert [shard.part for shard in expand(["a*.tar::b.tar"])] == [0, 0, 1]


def test_a_path_with_braces_in_it_is_that_path(tmp_path):
    touch(tmp_path / "odd{1,2}[x].tar")
    assert urls(tmp_path / "odd{1,2}[x].tar") == [str(tmp_path / "odd{1,2}[x].tar")]


def test_remote_shards_are_named_by_braces_and_not_looked_for():
    assert urls("https://example.org/a/{00..02}.tar?x=1")[2] == "https://example.org/a/02.tar?x=1"
    assert urls("pipe:aws s3 cp s3://bucket/{0..1}.tar -") == [f"pipe:aws s3 cp s3://bucket/{i}.tar -" for i in (0, 1)]
    assert {shard.folder for shard in expand("s3://bucket/x/{0..9}.tar")} == {"s3://bucket/x"}


def test_missing_shards_are_named_too_where_that_is_wanted(tmp_path):
    touch(tmp_path / "0.tar")
    assert len(urls(f"{tmp_path}/{{0..2}}.tar", missing=True)) == 3
    with pytest.raises(UserError, match="there is no shard"):
        expand(f"{tmp_path}/{{0..2}}.tar")


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_named_wrongly_is_refused_in_one_line(tmp_path):
    path = tmp_path / "0.tar"
    touch(path)
    (tmp_path / "x").mkdir()
    cases = {
        f"{tmp_path}/{{0..9}}.tar": r"no shard .*1.tar \(nor 8 others of the 10 in .*\): correct the name",
        f"{tmp_path}/x*.tar": r"no shard .*x\*.tar: correct the name",
        f"{tmp_path}/{{0..9.tar": "unbalanced braces",
        str(tmp_path): r"is a folder: name its shards, for example .*\*.tar",
        "https://example.org/*.tar": "a glob finds only files on this machine",
        f"{path}::{tmp_path}/x/../0.tar": "named 2 times",
        f"{path}::{path}": "named 2 times",
        "": "no shards given",
    }
    for pattern, message in cases.items():
        with pytest.raises(UserError, match=message) as error:
            Shards.open(pattern)
        one_line(error)


def test_a_link_beside_its_shard_is_the_same_shard(tmp_path):
    touch(tmp_path / "0.tar")
    (tmp_path / "1.tar").symlink_to(tmp_path / "0.tar")
    with pytest.raises(UserError, match=r"0.tar is named 2 times \(as .*/0.tar and .*/1.tar\)") as error:
        expand(f"{tmp_path}/*.tar")
    one_line(error)
    assert len(urls(tmp_path / "1.tar")) == 1


def test_a_glob_that_is_matched_by_hand_finds_what_glob_finds(tmp_path):
    assert matches("/d/a/b/7.tar", "/d/**/*.tar") and matches("/d/7.tar", "/d/**/*.tar")
    assert matches("/d/7.tar", "/d/[0-9].tar") and not matches("/d/a/7.tar", "/d/*.tar")
