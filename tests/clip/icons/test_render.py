import hashlib
import io
import json
import tarfile

import numpy as np
import pytest
from icon_packages import SHAPES
from PIL import Image

from steering.clip.icons import render
from steering.clip.icons.render import draw, make_shard, stats_path
from steering.clip.icons.selection import Icon
from steering.errors import RunError

pytest.importorskip("resvg_py")


def icon(body: str, name: str = "star", box=(0.0, 0.0, 24.0, 24.0)) -> Icon:
    return Icon("ours", name, "MIT", body, box)


def alpha(body: str, side: int = 16, **box) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(draw(icon(body, **box), side))).convert("RGBA"))[..., 3]


def test_a_drawing_is_fitted_into_the_middle_of_a_clear_square():
    bar = '<path d="M5 7h20v10H5z"/>'
    drawn = alpha(bar, box=(5, 7, 20, 10))
    assert drawn.shape == (16, 16)
    assert (drawn[4:12] == 255).all() and not drawn[:4].any() and not drawn[12:].any()


def test_a_picture_outside_is_not_loaded_even_if_one_came_through(tmp_path):
    Image.new("RGB", (24, 24), "red").save(tmp_path / "red.png")
    for link in (tmp_path / "red.png", "red.png", f"file://{tmp_path}/red.png"):
        with pytest.raises(ValueError, match="other elements"):
            draw(icon(f'<image width="24" height="24" href="{link}"/>'), 16)


@pytest.mark.slow
def test_a_shard_has_pictures_captions_and_facts_and_always_the_same_bytes(tmp_path):
    drawn = [icon(body, f"{name}-outline-24") for name, body in SHAPES.items()]
    icons = [*drawn, icon("", "nothing"), icon("<g>", "unfinished")]
    left_out = make_shard(tmp_path / "a.tar", icons, 32)
    assert left_out == {"nothing drawn": 1, "drawing refused by resvg": 1}
    make_shard(tmp_path / "b.tar", icons, 32)
    content = (tmp_path / "a.tar").read_bytes()
    assert content == (tmp_path / "b.tar").read_bytes()
    stats = json.loads(stats_path(tmp_path / "a.tar").read_text())
    assert stats["successes"] == 6 and stats["bytes"] == len(content)
    assert stats["sha256"] == hashlib.sha256(content).hexdigest()
    with tarfile.open(tmp_path / "a.tar") as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    assert members["ours/star-outline-24.txt"] == b"star outline 24"
    about = {"set": "ours", "license": "MIT", "style": "outline 24", "concept": "star"}
    assert json.loads(members["ours/star-outline-24.json"]) == about
    assert Image.open(io.BytesIO(members["ours/star-outline-24.png"])).size == (32, 32)


@pytest.mark.slow
def test_a_drawing_that_takes_too_long_is_left_out_and_the_others_are_made(tmp_path, monkeypatch):
    monkeypatch.setattr(render, "SECONDS", 0.5)
    levels = (f'<g id="l{n}">' + f'<use href="#l{n - 1}"/>' * 10 + "</g>" for n in range(1, 7))
    bomb = f'<defs><g id="l0"><path d="M0 0h5v5z"/></g>{"".join(levels)}</defs><use href="#l6"/>'
    icons = [icon(SHAPES["star"]), icon(bomb, "bomb"), icon(SHAPES["moon"], "moon")]
    assert make_shard(tmp_path / "a.tar", icons, 32) == {"drawing takes too long or too much memory": 1}
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert [name for name in tar.getnames() if name.endswith("png")] == ["ours/star.png", "ours/moon.png"]


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write .*Choose another folder with --out"):
        make_shard(tmp_path / "file" / "a.tar", [icon(SHAPES["star"])], 32)
