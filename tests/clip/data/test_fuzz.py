"""Thousands of tars, side files and manifests that a generator of hostile cases thought of: one line each, at once."""

import json
import os
import tarfile
import time
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shard_files import pairs, png

from steering.clip.data.images import Undecodable, decode
from steering.clip.data.manifest import Manifest
from steering.clip.data.shards import Shards
from steering.errors import RunError, UserError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
MOST_SECONDS, MOST_WAITED = 3.0, 120.0  # of one case: computing, and until it is over on a machine that is busy
EVERY_CHECK: Any = list(HealthCheck)
often = settings(max_examples=5000, deadline=None, database=None, suppress_health_check=EVERY_CHECK)

NAMES = [
    "a.png",
    "a.txt",
    "a.json",
    "b.png",
    "b.txt",
    "a.pyd",
    "x/../a.txt",
    ".png",
    "a.",
    "a",
    "/",
    "__a__",
    "",
    "a\nb.txt",
]
SIZES = [0, 1, 2, 511, 512, 513, 10**6, 1 << 33, 1 << 40, 1 << 63, (1 << 88) - 1]
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.sampled_from([10**12, 10**400]) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
TEXTS = JSON.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=40)
TEXTS |= st.sampled_from(
    [b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000, b"NaN", b'{"caption": "\\ud800"}', b"\xef\xbb\xbf{}"]
)


@st.composite
def header(draw, size: int) -> bytes:
    """A header of a member, most of whose fields may be nonsense, and most of whose checksums are right."""
    entry = tarfile.TarInfo(draw(st.sampled_from(NAMES)))
    entry.size = size
    entry.type = draw(st.sampled_from([b"0"] * 6 + [b"\0", b"x", b"g", b"L", b"K", b"5", b"2", b"S", b"7", b"Z"]))
    block = bytearray(entry.tobuf(draw(st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT])))[-512:])
    for _ in range(draw(st.integers(0, 2))):
        start, length = draw(st.sampled_from([(0, 100), (124, 12), (136, 12), (156, 1), (257, 8), (345, 155)]))
        content = draw(st.binary(max_size=length) | st.sampled_from(SIZES).map(lambda n: b"\x80" + n.to_bytes(11)))
        block[start : start + length] = content[:length].ljust(length, draw(st.sampled_from([b"\0", b" ", b"0"])))
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % (sum(block) + draw(st.sampled_from([0] * 9 + [1])))
    return bytes(block)


@st.composite
def member(draw) -> bytes:
    lines = st.lists(
        st.sampled_from([b"12 path=a.png\n", b"30 size=0\n", b"12 size=99\n", b"9 a", b"1 a=", b"99999999999 b=c\n"])
    )
    content = draw(st.just(png()) | st.sampled_from(NAMES).map(str.encode) | TEXTS | lines.map(b"".join))[:5000]
    size = draw(st.sampled_from([len(content)] * 5 + SIZES[:7]))
    return draw(header(size)) + content + bytes(-len(content) % 512)


@st.composite
def tar(draw) -> bytes:
    content = b"".join(draw(st.lists(member(), max_size=6))) + bytes(draw(st.sampled_from([0, 512, 1024, 10240])))
    if content and draw(st.integers(0, 4)) == 0:
        content = content[: draw(st.integers(0, len(content)))]
    if content and draw(st.integers(0, 4)) == 0:
        position = draw(st.integers(0, len(content) - 1))
        content = content[:position] + bytes([draw(st.integers(0, 255))]) + content[position + 1 :]
    return content


def try_all(pattern, **options) -> None:
    """Opens shards and reads all that they hold; whatever is wrong is one line."""
    began, computed = time.monotonic(), time.process_time()
    try:
        shards = Shards.open(pattern, **options)
        for number in range(min(len(shards), 20)):
            for read in (shards.picture, shards.captions, shards.info, shards.name):
                with suppress(Undecodable):
                    read(number)
            with suppress(Undecodable):
                decode(shards.picture(number))
    except (UserError, RunError) as error:
        assert "\n" not in str(error) and len(str(error)) < 2000, error
    assert time.process_time() - computed < MOST_SECONDS and time.monotonic() - began < MOST_WAITED


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("STEERING_CACHE", str(tmp_path / "cache"))
    return tmp_path


@often
@given(content=tar(), bad_shards=st.booleans())
def test_tars(place, content, bad_shards):
    for path in (place / ".steer-index").glob("*"):
        path.unlink()
    (place / "0.tar").write_bytes(content)
    try_all(f"{place}/{{0..0}}.tar", bad_shards=bad_shards)


@st.composite
def side_file(draw) -> bytes:
    name = draw(st.sampled_from(["0.tar", "successes", "x"]))
    value = draw(JSON | st.integers(-1, 3))
    return draw(TEXTS | st.just(json.dumps({name: value}).encode()))


@settings(often, max_examples=2000)
@given(content=side_file(), name=st.sampled_from(["sizes.json", "0_stats.json"]))
def test_side_files(place, content, name):
    if not (place / "0.tar").exists():
        pairs(place / "0.tar", "ab")
        pairs(place / "1.tar", "c")
    for path in (*(place / ".steer-index").glob("*"), *place.glob("*.json")):
        path.unlink()
    (place / name).write_bytes(content)
    try_all(f"{place}/*.tar")


ROW = {
    "size": 10240,
    "count": 2,
    "first": 0,
    "slot": 0,
    "name": "0.tar",
    "fault": "",
    "kinds": "png txt",
    "paired": True,
}


@st.composite
def manifest(draw) -> bytes:
    rows = [dict(ROW, name=f"{number}.tar") for number in range(draw(st.integers(0, 3)))]
    content = {"version": 1, "offsets": "offsets-01234567.bin", "shards": rows}
    for _ in range(draw(st.integers(0, 2))):
        part = draw(st.sampled_from([content, *rows]))
        part[draw(st.sampled_from(sorted(part)))] = draw(
            JSON | st.sampled_from([0, 1, 4, 10240, "../x", "pipe:touch x"])
        )
    return draw(TEXTS | st.just(json.dumps(content).encode()))


@settings(often, max_examples=3000)
@given(content=manifest(), offsets=st.lists(st.sampled_from([0, 2048, 4096, 10240, -1, 1 << 62]), max_size=12))
def test_manifests(place, content, offsets):
    if not (place / "0.tar").exists():
        pairs(place / "0.tar", "ab")
        os.makedirs(place / ".steer-index")
    (place / ".steer-index/index.json").write_bytes(content)
    (place / ".steer-index/offsets-01234567.bin").write_bytes(
        b"".join(n.to_bytes(8, "little", signed=True) for n in offsets)
    )
    with suppress(UserError):
        Manifest.read(place / ".steer-index")
    try_all(f"{place}/*.tar")
