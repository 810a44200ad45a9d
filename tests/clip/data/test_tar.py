"""Tars by their headers: the same members as webdataset and the standard library find."""

import os
import tarfile
from typing import Any

import pytest
from shard_files import write_files
from webdataset.tariterators import group_by_keys, tar_file_iterator

from steering.clip.data.shards import Shards
from steering.clip.data.tar import Fault, members, scan


def reading(file):
    return lambda offset, size: os.pread(file.fileno(), size, offset)


def samples_of(path):
    """Key and members of every sample."""
    with open(path, "rb") as file:
        scanned, read, result = scan(file.fileno()), reading(file), []
        for start, stop in zip(scanned.starts, [*scanned.starts[1:], scanned.end], strict=True):
            here = list(members(read, start, stop))
            result.append((here[0].key, {member.kind: read(member.offset, member.size) for member in here}))
    return result


def test_members_are_the_bytes_that_webdataset_reads(tmp_path):
    names = ["x/a.b/1.jpg", "x/a.b/1.txt", "x/a.b/1.SEG.png", "2.txt", "2.jpg", ".hidden.jpg", "noextension"]
    names += ["__index__.json", "sub/__meta__.json", "./3.jpg", "./3.json", "4.", "2.jpg"]
    write_files(tmp_path / "0.tar", names)
    with open(tmp_path / "0.tar", "rb") as stream:
        file: Any = stream  # webdataset says that it wants a TarFile, which it opens itself
        samples = list(group_by_keys({**member, "__url__": ""} for member in tar_file_iterator(file)))
    expected = [(s["__key__"], {k: v for k, v in s.items() if not k.startswith("__")}) for s in samples]
    assert samples_of(tmp_path / "0.tar") == expected


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
        expected = [(m.name.partition(".")[0], m.offset_data, m.size) for m in tar if m.isreg()]
    with open(path, "rb") as file:
        scanned = scan(file.fileno())
        bounds = [*scanned.starts, scanned.end]
        result = [m for i in range(len(scanned.starts)) for m in members(reading(file), bounds[i], bounds[i + 1])]
    assert [(member.key, member.offset, member.size) for member in result] == expected


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_members_beyond_eight_gigabytes_are_found(tmp_path, form):
    path, size = tmp_path / "0.tar", 9 << 30
    big, small = tarfile.TarInfo("a.jpg"), tarfile.TarInfo("a.txt")
    big.size, small.size = size, 2
    with open(path, "wb") as file:  # with a hole: it takes no space
        file.write(big.tobuf(form))
        file.seek(size, os.SEEK_CUR)
        file.write(small.tobuf(form) + b"hi".ljust(512, b"\0") + bytes(1024))
    shards = Shards.open(path)
    assert shards.caption(0) == "hi"


def with_size(field):
    """The header of an empty member whose size is given by these 12 bytes, with the checksum right."""
    header = bytearray(tarfile.TarInfo("b.jpg").tobuf(tarfile.USTAR_FORMAT))
    header[124:136] = field
    header[148:156] = b"%06o\0 " % (256 + sum(header[:148]) + sum(header[156:]))
    return bytes(header)


@pytest.mark.timeout(10)
@pytest.mark.parametrize("field", [b"-0000000512\0", b"0o000000000\0", b"\xff" * 12])
def test_a_size_that_is_no_octal_number_is_damage(tmp_path, field):
    """A member of -512 bytes would be its own successor for ever."""
    path = write_files(tmp_path / "0.tar", ["a.jpg", "a.txt"])
    content = path.read_bytes()[:2048]
    path.write_bytes(content + with_size(field) + bytes(1024))
    with open(path, "rb") as file:
        assert scan(file.fileno()).fault.startswith("is damaged: there is no tar header at byte 2,048")
    path.write_bytes(content + with_size(b"00000000000 ") + bytes(1024))
    with open(path, "rb") as file:
        assert scan(file.fileno()).fault == ""


def test_an_extended_header_with_endless_digits_is_ignored(tmp_path):
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("a.jpg", "a.txt"):
            entry = tarfile.TarInfo(name)
            entry.pax_headers = {"size": "0" * 5000}
            tar.addfile(entry)
    with open(path, "rb") as file:
        assert len(scan(file.fileno()).starts) == 1


def test_a_name_that_occurs_twice_is_told_with_one_remedy(tmp_path):
    path = write_files(tmp_path / "0.tar", ["a.jpg", "a.txt", "b.jpg", "b.jpg"])
    with open(path, "rb") as file:
        assert (
            scan(file.fileno()).fault
            == "holds b.jpg twice in a row after 1 whole samples: write it again with one of them"
        )


def test_what_is_no_sample_any_more_is_a_fault(tmp_path):
    path = write_files(tmp_path / "0.tar", ["a.jpg", "a.txt", "b.jpg"])
    with open(path, "rb") as file:
        starts = scan(file.fileno()).starts
        assert list(starts) == [0, 2048]
        with pytest.raises(Fault, match="there is no tar header at byte 512"):
            list(members(reading(file), 512, 2048))
        with pytest.raises(Fault, match="within a member"):
            list(members(reading(file), 0, 2048 - 512))
