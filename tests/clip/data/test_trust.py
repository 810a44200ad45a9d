"""Data of strangers: nothing of theirs runs, fills the memory or waits for ever, and all that is wrong is one line."""

import io
import os
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shard_files import pairs, png, write, write_files

from steering.clip.data import sources
from steering.clip.data.images import Undecodable, decode
from steering.clip.data.shards import MOST_BYTES, MOST_TEXT, Shards
from steering.clip.data.sources import expand, several
from steering.clip.data.tar import members, scan
from steering.errors import RunError, UserError


def one_line(error) -> str:
    message = str(error.value)
    assert message.isprintable() and len(message) < 2000
    return message


# ------------------------------------------------------------------------------------------------ what is not run


@pytest.mark.parametrize(
    "name", ["pipe:touch ran;.tar", "http:/0.tar", "s3:/0.tar", "hf:/0.tar", "a pipe:touch ran.tar"]
)
def test_a_file_that_is_named_like_a_command_is_a_file(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path(name).parent.mkdir(exist_ok=True)
    pairs(Path(name), "ab")
    for _ in range(2):
        shards = Shards.open("**/*.tar")
        assert shards.caption(1) == "caption of b" and not shards.remote
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    "pattern",
    ["PIPE:touch ran; true ://", "{pipe,x}:touch ran", "{pipe:touch ran,x}://", "scp://host/0.tar", "ais://a/0.tar",
     "file:///0.tar", "-", "GOPEN://x", "x\0y.tar", "{{pipe,pipe}:touch ran,2}"],
)  # fmt: skip
@pytest.mark.parametrize("missing", [False, True])
def test_only_what_begins_with_a_known_scheme_is_fetched(tmp_path, monkeypatch, pattern, missing):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        Shards.open(pattern, bad_shards=missing)
    one_line(error)
    assert not Path("ran").exists()


# ----------------------------------------------------------------------------------- what has no end or is no file


def fifo(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.mkdir()


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 40 << 30)


@pytest.mark.timeout(10)
@pytest.mark.parametrize("kind", [fifo, endless, folder, sparse])
@pytest.mark.parametrize("name", ["sizes.json", "1_stats.json"])
def test_what_is_no_file_of_sense_beside_shards_is_not_read(tmp_path, kind, name):
    for key in "01":
        pairs(tmp_path / f"{key}.tar", key)
    kind(tmp_path / name)
    assert [Shards.open(f"{tmp_path}/*.tar").caption(i) for i in (0, 1)] == ["caption of 0", "caption of 1"]


@pytest.mark.timeout(10)
@pytest.mark.parametrize("kind", [fifo, endless, folder, sparse])
@pytest.mark.parametrize("name", ["index.json", "lock", "offsets-01234567.bin"])
def test_what_is_no_file_of_sense_in_the_index_is_refused_or_left_alone(tmp_path, monkeypatch, kind, name):
    monkeypatch.setenv("STEERING_CACHE", str(tmp_path / "cache"))
    pairs(tmp_path / "0.tar", "a")
    Shards.open(tmp_path / "0.tar")
    path = tmp_path / ".steer-index" / name
    path = next((tmp_path / ".steer-index").glob("offsets-*")) if name.startswith("offsets") else path
    path.unlink(missing_ok=True)
    kind(path)
    pairs(tmp_path / "1.tar", "b")
    try:
        assert Shards.open(f"{tmp_path}/*.tar").caption(1) == "caption of b"
    except (UserError, RunError) as error:
        assert "\n" not in str(error) and "Errno" not in str(error)


@pytest.mark.timeout(10)
@pytest.mark.parametrize("kind", [fifo, endless, folder])
@pytest.mark.parametrize("pattern", ["0.tar", "*.tar", "{0..0}.tar", "{0..2}.tar"])
@pytest.mark.parametrize("missing", [False, True])
def test_what_is_no_file_of_sense_in_place_of_a_shard_is_refused(tmp_path, kind, pattern, missing):
    kind(tmp_path / "0.tar")
    with pytest.raises(UserError) as error:
        Shards.open(f"{tmp_path}/{pattern}", bad_shards=missing)
    one_line(error)


@pytest.mark.timeout(10)
def test_a_pipe_in_place_of_a_shard_that_a_run_reads_is_an_unreadable_shard(tmp_path):
    pairs(tmp_path / "0.tar", "ab")
    shards = Shards.open(tmp_path / "0.tar")
    (tmp_path / "0.tar").unlink()
    fifo(tmp_path / "0.tar")
    with pytest.raises(RunError, match=r"0.tar could not be read: it is no ordinary file"):
        shards.caption(0)


# ------------------------------------------------------------------------------ what a header says costs no more


def header(name: bytes, size: int, kind: bytes = b"0") -> bytes:
    """A tar header with the checksum right, whatever it says."""
    block = bytearray(tarfile.TarInfo().tobuf(tarfile.USTAR_FORMAT))
    block[:100] = name.ljust(100, b"\0")
    block[124:136] = b"%011o\0" % size if size < 1 << 33 else b"\x80" + size.to_bytes(11)
    block[156:157] = kind
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


def extended(content: bytes, kind: bytes = b"x") -> bytes:
    return header(b"extended", len(content), kind) + padded(content)


def record(key: str, value: str) -> bytes:
    text = f" {key}={value}\n"
    size = len(text) + len(str(len(text)))
    return f"{size + (len(str(size + len(text) - size)) > len(str(len(text))))}{text}".encode()


def sample(key: str) -> bytes:
    return b"".join(
        header(f"{key}.{kind}".encode(), len(content)) + padded(content)
        for kind, content in (("txt", key.encode()), ("png", png()))
    )


HEADERS = {
    "2 MB of pax records": (extended(b"20 comment=xxxxxxxx\n" * 100_000), "has 2,000,000 bytes"),
    "1 MB of pax records": (extended(b"20 comment=xxxxxxxx\n" * 50_000), ""),
    "1 MB of records that say nothing": (extended(b"1 a=" * 250_000), ""),
    "1 MB of digits": (extended(b"9" * 1_000_000), ""),
    "a pax header without an equals sign": (extended(b"9 " + b"a" * 1_000_000), ""),
    "a path of 100 kB in a pax header": (extended(record("path", "x/" * 50_000 + "a.txt")), ""),
    "a name of 100 kB": (extended(b"y/" * 50_000 + b"a.txt\0", b"L"), ""),
    "a name of 100 kB of dots": (extended(b"." * 100_000 + b"\0", b"L"), ""),
    "a name of 100 kB of underscores": (extended(b"_" * 100_000 + b"\0", b"L"), ""),
    "a name of 100 kB of dots and slashes": (extended(b"./" * 50_000 + b"\0", b"L"), ""),
    "a name of 40 GB": (header(b"long", 40 << 30, b"L"), "cut short"),
    "a pax header of 40 GB": (header(b"long", 40 << 30, b"x"), "cut short"),
    "a pax header of 2^80 bytes": (header(b"long", 1 << 80, b"x"), "cut short"),
    "a member of 2^80 bytes": (header(b"b.txt", 1 << 80), "cut short"),
    "a size of 2^60 in a pax header": (extended(record("size", str(1 << 60))), "cut short"),
    "10,000 pax headers": (extended(record("path", "d.txt")) * 10_000, ""),
    "a link with a size": (header(b"b.txt", 1 << 80, b"2"), ""),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", HEADERS)
def test_a_header_costs_in_proportion_to_its_bytes(tmp_path, name):
    content, fault = HEADERS[name]
    (tmp_path / "0.tar").write_bytes(sample("a") + sample("b") + content + sample("c") + bytes(1024))
    before = time.process_time()
    with open(tmp_path / "0.tar", "rb") as file:
        scanned = scan(file.fileno())
        for start, stop in zip(scanned.starts, [*scanned.starts[1:], scanned.end], strict=True):
            list(members(lambda offset, size: os.pread(file.fileno(), size, offset), start, stop))
    assert time.process_time() - before < 3
    assert (fault in scanned.fault) and bool(fault) == bool(scanned.fault)
    assert len(scanned.fault) < 500


@pytest.mark.timeout(20)
@pytest.mark.parametrize("said", ["name", "member"])
def test_a_sparse_tar_whose_header_says_40_gb_takes_no_memory(tmp_path, said):
    """The file has so many bytes, as far as its size tells."""
    kind, name = (b"L", b"long") if said == "name" else (b"0", b"c.txt")
    with open(tmp_path / "0.tar", "wb") as file:
        file.write(sample("a") + sample("b") + header(name, 40 << 30, kind))
        file.truncate((40 << 30) + 8192)
    shards = Shards.open(tmp_path / "0.tar", bad_shards=True)
    assert [shards.caption(i) for i in (0, 1)] == ["a", "b"]
    if said == "member":
        with pytest.raises(Undecodable, match="too many bytes"):
            shards.caption(2)
    else:
        with pytest.raises(UserError, match="the extended header at byte 4,096 has 42,949,672,960 bytes"):
            Shards.open(tmp_path / "0.tar")


@pytest.mark.parametrize(("kind", "most"), [("txt", MOST_TEXT), ("json", MOST_TEXT), ("png", MOST_BYTES)])
def test_a_member_larger_than_any_of_its_kind_is_unusable(tmp_path, kind, most):
    others = b"".join(header(b"a." + other, 2) + padded(b"hi") for other in (b"png", b"txt") if other.decode() != kind)
    with open(tmp_path / "0.tar", "wb") as file:
        file.write(others + header(f"a.{kind}".encode(), most + 1))
        file.truncate(most + 8192)
    shards = Shards.open(tmp_path / "0.tar")
    with pytest.raises(Undecodable, match="too many bytes"):
        {"txt": shards.caption, "json": shards.info, "png": shards.picture}[kind](0)


# ------------------------------------------------------------------------------------------- messages stay short


def test_many_names_in_a_message_are_few(tmp_path):
    for number in range(300):
        (tmp_path / f"{number}.jpg").write_bytes(b"\xff\xd8")
    with pytest.raises(UserError, match=r"300 of 300 shards cannot be used: .* and 289 others \(or use what") as error:
        Shards.open(f"{tmp_path}/*.jpg")
    one_line(error)
    assert several([*"abc"], 2) == "a, b and 1 others" and several([*"ab"], 2) == "a, b"


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[31m", "a\u202eb", "a\r", "x" * 5000])
def test_a_name_in_a_tar_never_leaves_its_line(tmp_path, name):
    path = write_files(tmp_path / "0.tar", [f"{name}.png", f"{name}.txt", f"{name}.png"])
    with pytest.raises(UserError, match="twice in a row") as error:
        Shards.open(path)
    one_line(error)
    shards = Shards.open(write_files(tmp_path / "1.tar", [f"{name}.png", f"{name}.txt"]))
    assert shards.name(0).isprintable() and len(shards.name(0)) < 500
    write(tmp_path / "2.tar", [("k", {"png": png(), "json": b'{"%s": 1}' % name.encode("unicode_escape")})])
    with pytest.raises(UserError, match="no captions") as error:
        Shards.open(tmp_path / "2.tar")
    one_line(error)


@pytest.mark.parametrize("pattern", ["{" * 5000 + "}" * 5000, "{a," * 500 + "b" + "}" * 500, "{0.." + "9" * 5000 + "}"])
def test_braces_in_braces_are_no_pattern(pattern):
    with pytest.raises(UserError, match="unbalanced braces in"):
        expand(pattern)


@pytest.mark.timeout(10)
@pytest.mark.parametrize("pattern", ["{0..1000000000000}.tar", "https://x/{1..99}{1..99}", "{a,b,c,d,e,f}" * 20])
def test_braces_do_not_stand_for_more_shards_than_there_can_be(monkeypatch, pattern):
    monkeypatch.setattr(sources, "MOST", 1000)
    with pytest.raises(UserError, match="stands for more than 1,000 shards"):
        expand(pattern)


# ------------------------------------------------------------------------------------------------- nothing is lost


def test_a_member_that_occurs_twice_costs_its_sample_alone(tmp_path):
    names = ["a.png", "a.txt", "b.png", "b.txt", "b.png", "c.png", "c.txt", "d.txt", "d.txt", "d.png", "e.png", "e.txt"]
    path = write_files(tmp_path / "0.tar", names)
    with pytest.raises(UserError, match=r"0.tar holds b.png twice in a row after 1 whole samples: write it again"):
        Shards.open(path)
    shards = Shards.open(path, bad_shards=True)
    assert len(shards) == 5 and [shards.caption(i) for i in (0, 2, 4)] == ["a.txt", "c.txt", "e.txt"]
    for number in (1, 3):
        with pytest.raises(Undecodable, match="member twice"):
            shards.picture(number)


@pytest.mark.parametrize("text", [b"", b"  \n", "\ufeff".encode()])
def test_an_empty_text_does_not_hide_the_caption_in_the_json(tmp_path, text):
    write(tmp_path / "0.tar", [("a", {"png": png(), "txt": text, "json": b'{"caption": ["one", "two"]}'})])
    assert Shards.open(tmp_path / "0.tar").captions(0) == ["one", "two"]


@pytest.mark.parametrize(
    ("caption", "shown"),
    [("a \\ud800 b", "a ? b"), ("x" * 9_000_000, "x" * 1000), ("n" * 1200 + " end", "n" * 1000 + " end")],
)
def test_a_caption_is_text_that_a_tokenizer_can_take(tmp_path, caption, shown):
    write(tmp_path / "0.tar", [("a", {"png": png(), "json": f'{{"caption": "{caption}"}}'.encode()})])
    assert Shards.open(tmp_path / "0.tar").caption(0) == shown


def test_a_link_in_place_of_the_index_is_not_followed(tmp_path, monkeypatch):
    monkeypatch.setenv("STEERING_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    pairs(tmp_path / "data/0.tar", "ab")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data/.steer-index").symlink_to(tmp_path / "elsewhere")
    assert Shards.open(tmp_path / "data/0.tar").manifest.is_relative_to(tmp_path / "cache")
    assert not list((tmp_path / "elsewhere").iterdir())


def tiff(values, kind) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.array([values], dtype=kind)).save(stream, "TIFF")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("kind", "values", "grey"),
    [
        (np.float32, [0, 0.25, 0.5, 1], [0, 64, 128, 255]),
        (np.float32, [0, 64.2, 128, 255], [0, 64, 128, 255]),
        (np.float32, [0, 16448, 32896, 65535], [0, 64, 128, 255]),
        (np.int32, [0, 16448, 32896, 65535], [0, 64, 128, 255]),
        (np.uint16, [0, 16448, 32896, 65535], [0, 64, 128, 255]),
        (np.int32, [0, 2**29, 2**30, 2**31 - 1], [0, 64, 128, 255]),
        (np.float32, [-1, 0, 0, 1], None),
        (np.float32, [float("nan"), 0, 0, 1], None),
        (np.float32, [0, 0, 0, float("inf")], None),
        (np.int32, [-5, 0, 0, 1], None),
    ],
)
def test_numbers_of_any_range_become_colours_or_are_refused(kind, values, grey):
    if grey is None:
        with pytest.raises(Undecodable, match="numbers that are no colours"):
            decode(tiff(values, kind))
    else:
        assert np.asarray(decode(tiff(values, kind)))[0, :, 0].tolist() == grey


@pytest.mark.parametrize(
    "pointer", [b"version https://git-lfs.github.com/spec/v1\noid x\n", b"/annex/objects/MD5-x.png"]
)
def test_a_pointer_to_a_picture_is_called_one(pointer):
    with pytest.raises(Undecodable, match="Git LFS pointer"):
        decode(pointer)
