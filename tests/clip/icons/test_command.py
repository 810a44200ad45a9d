import json
from pathlib import Path

import pytest
from icon_packages import drawings, icon_set, write_package

from steering.clip.data.shards import Shards
from steering.clip.icons import command
from steering.clip.icons import package as npm
from steering.clip.icons.command import Manifest, run
from steering.clip.icons.selection import SPLITS
from steering.errors import UserError

pytest.importorskip("resvg_py")


@pytest.fixture
def package(tmp_path) -> Path:
    sets = [icon_set(f"s{n}", drawings(0.3 + n / 100), spdx="ISC" if n else "CC0-1.0") for n in range(20)]
    icons = sets[0]["icons"]
    icons["sky-moon"] = {"body": f'<g class="copy">{icons.pop("star-top")["body"]}</g>'}
    icons["sky-sun"] = {"body": icons["sky-moon"]["body"] + " "}
    return write_package(tmp_path / "p.tgz", sets)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(command, "SHARD", 500)


def make(out: Path, package: Path, *, limit=None, seed=0, side=32, workers=2) -> dict[str, bytes]:
    """Every file but the one that has the time in it."""
    run(out, package, limit=limit, seed=seed, side=side, workers=workers)
    paths = [path for path in out.rglob("*") if path.is_file() and path.name not in ("environment.json", ".lock")]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in paths}


def stop(*_) -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_shards_are_the_same_with_any_workers_and_after_a_stop_and_can_be_trained_on(
    tmp_path, package, capsys, monkeypatch
):
    made = make(tmp_path / "a", package, workers=3)
    assert "icons of 20 sets" in capsys.readouterr().out
    manifest = Manifest.model_validate_json(made["manifest.json"])
    assert list(manifest.samples) == list(SPLITS) and manifest.version == "1.2.3"
    assert set(manifest.shards) == {name for name in made if name.endswith(".tar")}
    assert manifest.left_out["picture of another icon"] == 1
    assert sum(manifest.samples.values()) + sum(manifest.left_out.values()) == 20 * 72 + 1
    for split, count in manifest.samples.items():
        shards = Shards.open(f"{tmp_path}/a/{split}/*.tar")
        assert len(shards) == count
        assert shards.caption(0) == " ".join([shards.info(0)["concept"], shards.info(0)["style"]]).strip()
    assert all(f"S{n}".encode() in made["ATTRIBUTIONS.md"] for n in range(20))

    interrupted = tmp_path / "b"
    make(interrupted, package, workers=1)
    kept = (interrupted / "train/001.tar").stat().st_mtime_ns
    for name in ("manifest.json", "train/000.tar", "reference/000_stats.json"):
        (interrupted / name).unlink()
    monkeypatch.setattr(command, "shard", stop)
    with pytest.raises(KeyboardInterrupt):
        make(interrupted, package)
    monkeypatch.undo()
    monkeypatch.setattr(command, "SHARD", 500)
    (interrupted / ".drawn" / "001.json").unlink()
    assert make(interrupted, package) == made
    assert (interrupted / "train/001.tar").stat().st_mtime_ns == kept

    with pytest.raises(UserError, match=r"made otherwise \(seed 0 is now 1, side 32 is now 16\): choose another --out"):
        make(interrupted, package, seed=1, side=16)


@pytest.mark.slow
def test_a_package_without_usable_icons_is_refused(tmp_path):
    path = write_package(tmp_path / "p.tgz", [icon_set("a", spdx="GPL-3.0"), icon_set("b", category="Logos")])
    with pytest.raises(UserError, match=r"no icons that can be used: left out were licence GPL-3\.0 72, set of logos"):
        make(tmp_path / "a", path)


def test_another_file_under_the_pinned_version_is_refused(tmp_path, monkeypatch, package):
    monkeypatch.setattr(npm, "fetch", lambda: package)
    with pytest.raises(UserError, match=r"is not version 2\.2\.535 as npm published it: delete it"):
        run(tmp_path / "a", None, limit=None, seed=0, side=32, workers=1)
    assert not (tmp_path / "a").exists()


def test_what_stands_in_the_folder_is_not_mixed_with(tmp_path, package):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine.txt").write_text("")
    with pytest.raises(UserError, match=r"is no run folder \(it has no icons.json\) nor empty"):
        make(tmp_path / "a", package)


def test_a_damaged_manifest_is_told(tmp_path, package):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "icons.json").write_text(json.dumps({}))
    with pytest.raises(UserError, match=r"icons.json is damaged"):
        make(tmp_path / "a", package)
