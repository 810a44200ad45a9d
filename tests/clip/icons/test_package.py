import gzip
import json
from pathlib import Path

import pytest
from icon_packages import icon_set, write_package

from steering.clip.icons import package as npm
from steering.clip.icons.package import Package
from steering.errors import RunError, UserError


def test_sets_and_version_are_read(tmp_path):
    package = Package(write_package(tmp_path / "p.tgz", [icon_set("ours"), icon_set("theirs")]))
    assert [(icons.prefix, len(icons.icons)) for icons in package.sets()] == [("ours", 72), ("theirs", 72)]
    assert package.version == "1.2.3"


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"name": "left-pad"}, "is the package 'left-pad', not @iconify/json"),
        ({"package/package.json": "[]"}, "not in Iconify's form"),
        ({"package/package.json": b"\xff"}, "not in Iconify's form"),
        ({"../../etc/passwd": "x"}, "names a file outside of its folder"),
        ({"/etc/passwd": "x"}, "names a file outside of its folder"),
        ({"package/json/..\\x.json": "x"}, "names a file outside of its folder"),
        ({"package/json/other.json": '{"prefix": "../x", "icons": {}}'}, "not in Iconify's form .IconSet info"),
        ({"package/json/ours.json": "[" * 100_000}, "not in Iconify's form"),
        ({"package/json/ours.json": "{"}, "not in Iconify's form"),
    ],
)
def test_a_package_that_is_not_iconifys_is_refused_in_one_line(tmp_path, members, message):
    path = write_package(tmp_path / "p.tgz", [icon_set("ours")], **members)
    with pytest.raises(UserError, match=message) as error:
        list(Package(path).sets())
    assert "\n" not in str(error.value)


def test_a_set_under_another_ones_name_is_refused(tmp_path):
    other = {"package/json/ours.json": json.dumps(icon_set("theirs"))}
    with pytest.raises(UserError, match=r"ours\.json of the package holds the set 'theirs'"):
        list(Package(write_package(tmp_path / "p.tgz", [], **other)).sets())


@pytest.mark.parametrize("damage", ["cut", "flipped", "text", "empty", "tar", "gzip of nothing"])
def test_a_damaged_package_is_refused_in_one_line(tmp_path, damage):
    path = write_package(tmp_path / "p.tgz", [icon_set("ours")])
    content = path.read_bytes()
    path.write_bytes(
        {
            "cut": content[: len(content) // 2],
            "flipped": content[:500] + bytes(byte ^ 255 for byte in content[500:600]) + content[600:],
            "text": b"<html>not found</html>",
            "empty": b"",
            "tar": gzip.decompress(content),
            "gzip of nothing": gzip.compress(b""),
        }[damage]
    )
    with pytest.raises(UserError, match=r"damaged, cut short or no \.tgz|no npm package"):
        list(Package(path).sets())


def test_what_unpacks_to_too_much_is_not_unpacked(tmp_path, monkeypatch):
    path = write_package(tmp_path / "p.tgz", [icon_set("ours")], zeros=bytes(3_000_000))
    assert path.stat().st_size < 20_000
    monkeypatch.setattr(npm, "MOST_UNPACKED", 1_000_000)
    with pytest.raises(UserError, match="unpacks to more than @iconify/json can have"):
        list(Package(path).sets())


def test_the_digest_is_npms(tmp_path):
    (tmp_path / "p.tgz").write_bytes(b"abc")
    assert npm.integrity(tmp_path / "p.tgz").startswith("sha512-3a81oZNherrMQXNJriBBMRLm+k6JqX6iCp7u5ktV05oh")
    with pytest.raises(UserError, match=r"cannot read the package .*No such file"):
        npm.integrity(tmp_path / "q.tgz")
    with pytest.raises(UserError, match=r"cannot read the package .*Is a directory"):
        npm.integrity(tmp_path)


def fake_npm(folder: Path, script: str) -> None:
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(0o755)


def test_npm_is_asked_once_and_its_failure_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("STEERING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"npm is not installed: install Node\.js, or give --package FILE"):
        npm.fetch()
    fake_npm(tmp_path, "echo 'npm error code ENOTFOUND\nnpm error network no' >&2; exit 1")
    with pytest.raises(RunError, match=r"npm cannot fetch .* \(code ENOTFOUND network no\). Is there a network"):
        npm.fetch()
    fake_npm(tmp_path, 'for last; do :; done; echo packed > "$last/iconify-json.tgz"')
    assert npm.fetch().read_text() == "packed\n"
    (tmp_path / "npm").unlink()
    assert npm.fetch().read_text() == "packed\n"
