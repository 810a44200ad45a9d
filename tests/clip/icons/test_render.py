import io
import json
import tarfile

import numpy as np
import pytest
from icon_packages import SHAPES
from PIL import Image

from steering.clip.icons import render
from steering.clip.icons.render import Drawn, draw, draw_all, shard
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
def test_what_cannot_be_drawn_is_left_out_with_its_reason(tmp_path):
    icons = [icon(""), icon("<g>"), *(icon(body, name) for name, body in SHAPES.items())]
    draw_all(tmp_path / "a.bin", icons, 32)
    drawn = Drawn.model_validate_json((tmp_path / "a.json").read_text())
    assert drawn.left_out == {0: "nothing drawn", 1: "drawing refused by resvg"} and drawn.sizes[:2] == [0, 0]
    assert (tmp_path / "a.bin").read_bytes() == b"".join(draw(icon, 32) for icon in icons[2:])
    assert drawn.sizes[2:] == [len(draw(icon, 32)) for icon in icons[2:]]


@pytest.mark.slow
def test_a_drawing_that_takes_too_long_is_left_out_and_the_others_are_made(tmp_path, monkeypatch):
    monkeypatch.setattr(render, "SECONDS", 0.5)
    levels = (f'<g id="l{n}">' + f'<use href="#l{n - 1}"/>' * 10 + "</g>" for n in range(1, 7))
    bomb = f'<defs><g id="l0"><path d="M0 0h5v5z"/></g>{"".join(levels)}</defs><use href="#l6"/>'
    draw_all(tmp_path / "a.bin", [icon(SHAPES["star"]), icon(bomb, "bomb"), icon(SHAPES["moon"], "moon")], 32)
    drawn = Drawn.model_validate_json((tmp_path / "a.json").read_text())
    # By the speed of the machine, the renderer refuses it itself before its time is over.
    assert drawn.left_out[1] in ("drawing takes too long or too much memory", "drawing refused by resvg")
    assert list(drawn.left_out) == [1]
    assert [size > 0 for size in drawn.sizes] == [True, False, True]


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write .*Choose another folder with --out"):
        draw_all(tmp_path / "file" / "a.bin", [icon(SHAPES["star"])], 32)


def test_a_shard_has_pictures_captions_and_facts_and_always_the_same_bytes():
    samples = [(icon(body, f"{name}-outline-24"), name.encode()) for name, body in SHAPES.items()]
    content = shard(samples)
    assert content == shard(samples)
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    about = {"set": "ours", "license": "MIT", "style": "outline 24", "concept": "star"}
    assert json.loads(members["ours/star-outline-24.json"]) == about
    assert members["ours/star-outline-24.txt"] == b"star outline 24"
    assert members["ours/star-outline-24.png"] == b"star" and len(members) == 18
