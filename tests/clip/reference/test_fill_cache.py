"""Filling a cache: every shard once, whatever is killed, broken or done by others at the same time."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from steering.clip.data.augmentation import plain_views
from steering.clip.data.images import UNREADABLE, Undecodable, decode
from steering.clip.data.shards import Shards
from steering.clip.emoji_data import BUNDLE
from steering.clip.reference import fill_cache as filling
from steering.clip.reference.cache import Cache, Manifest
from steering.clip.reference.fill_cache import Filled, content, drop_faulty, fill
from steering.clip.reference.load import load_reference
from steering.clip.reference.model import encode
from steering.errors import RunError

BUNDLED = f"local-dir:{BUNDLE}"


@pytest.fixture(scope="module")
def towers():
    return load_reference(BUNDLED)


@pytest.fixture
def empty(tmp_path, towers) -> Cache:
    return Cache.make(tmp_path / "features", Manifest.of(towers, ref=BUNDLED))


def expected(towers, shards: Shards, number: int) -> torch.Tensor:
    """Features of one sample, computed alone."""
    images = plain_views([decode(shards.picture(number))], towers.preprocess)
    return encode(towers, images, towers.tokenize([shards.caption(number)]))[0]


def assert_whole(cache: Cache, towers, shards: Shards, *, without=()) -> None:
    """Every sample has its own features, those that cannot be read none, and nothing half written is left."""
    fresh = Cache(cache.folder, cache.manifest)
    result, present = fresh.look_up([shards.locate(number) for number in range(len(shards))])
    assert [number for number in range(len(shards)) if not present[number]] == list(without)
    for number in range(0, len(shards), 7):
        if number not in without:
            torch.testing.assert_close(result[number], expected(towers, shards, number), rtol=0, atol=1e-3)
    assert not fresh.faults and not list((cache.folder / "shards").glob(".*"))


@pytest.mark.parametrize("batch", [7, 64])
def test_every_sample_gets_its_features_in_its_place_whatever_the_batch(tars, towers, empty, batch):
    shards = Shards.open(tars(2, broken=(0, 5, 39)))
    done = fill(empty, towers, shards, batch=batch)
    assert (done.shards, done.pairs) == (2, 40)
    assert_whole(empty, towers, shards, without=(0, 5, 39))
    reported = content(empty, shards)
    assert (reported.shards, reported.pairs, reported.missing) == (2, 40, {"not a picture": 3})
    assert reported.size == sum(path.stat().st_size for path in (empty.folder / "shards").iterdir())


def test_a_shard_in_which_nothing_can_be_read_is_done_too(tars, towers, empty):
    shards = Shards.open(tars(2, pairs=4, broken=range(4)))
    fill(empty, towers, shards, batch=3)
    assert_whole(empty, towers, shards, without=range(4))


def test_features_that_are_not_finite_are_counted_and_left_out(tars, towers, empty, monkeypatch):
    def overflowing(*given):
        result = encode(*given)
        result[2, 1, 5] = float("inf")
        return result

    shards = Shards.open(tars(2))
    monkeypatch.setattr(filling, "encode", overflowing)
    fill(empty, towers, shards, batch=20)
    assert content(empty, shards).missing == {"not finite": 2}
    assert_whole(empty, towers, shards, without=(2, 22))


def test_filling_again_does_nothing_and_a_new_shard_is_added(tars, towers, empty):
    pattern = tars(2)
    fill(empty, towers, Shards.open(pattern))
    before = {path: path.stat().st_mtime_ns for path in (empty.folder / "shards").iterdir()}
    assert fill(empty, towers, Shards.open(pattern)) == Filled()
    (Path(pattern).parent / "002.tar").write_bytes(Path(tars(1, name="more")[:-5] + "000.tar").read_bytes())
    shards = Shards.open(pattern)
    assert fill(empty, towers, shards).shards == 1
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert_whole(empty, towers, shards)


def test_an_interruption_loses_the_current_shard_at_most(tars, towers, empty, monkeypatch):
    shards, done = Shards.open(tars(4)), Filled()
    calls = []

    def interrupted(*given):
        calls.append(1)
        if len(calls) == 6:  # two batches a shard: in the middle of the third
            raise KeyboardInterrupt
        return encode(*given)

    monkeypatch.setattr(filling, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fill(empty, towers, shards, batch=10, done=done)
    assert done.shards == content(empty, shards).shards == 2
    assert fill(empty, towers, shards).shards == 2
    assert_whole(empty, towers, shards)


def test_checking_finds_a_flipped_byte_and_filling_mends_it(tars, towers, empty):
    shards = Shards.open(tars(3))
    fill(empty, towers, shards)
    path = empty.path(shards.index[1])
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)
    assert fill(empty, towers, shards).shards == 0, "heads alone are read without a check"
    assert drop_faulty(empty, shards) == {"damaged": 1}
    assert fill(empty, towers, shards).shards == 1
    assert_whole(empty, towers, shards)


def test_a_shard_that_cannot_be_read_now_is_not_written_off(tars, towers, empty, monkeypatch):
    shards = Shards.open(tars(3))
    honest = Shards.picture

    def flaky(self, number):
        if number == 25:
            raise Undecodable(UNREADABLE)
        return honest(self, number)

    monkeypatch.setattr(Shards, "picture", flaky)
    done = fill(empty, towers, shards, batch=4)
    assert done.shards == 2 and done.unread == {shards.index[1].name}
    monkeypatch.setattr(Shards, "picture", honest)
    assert fill(empty, towers, shards).shards == 1
    assert_whole(empty, towers, shards)


def test_every_process_of_a_job_begins_elsewhere(tars, towers, empty, monkeypatch):
    shards, order = Shards.open(tars(4, pairs=3)), []
    honest = Cache.write
    monkeypatch.setattr(Cache, "write", lambda self, shard, *rest: (order.append(shard), honest(self, shard, *rest)))
    fill(empty, towers, shards, share=(1, 2))
    assert order == [*shards.index[2:], *shards.index[:2]]


def test_a_claim_that_outlives_its_process_is_not_waited_for_for_ever(tars, towers, empty, monkeypatch):
    monkeypatch.setattr(filling, "WAIT", 0.01)
    monkeypatch.setattr(filling, "PATIENCE", 0.05)
    shards = Shards.open(tars(2))
    claim = empty.claim(shards.index[0])
    claim.parent.mkdir()
    with FileLock(claim):
        assert fill(empty, towers, shards).shards == 2
    assert_whole(empty, towers, shards)


def test_a_file_system_without_locks_will_do(tars, towers, empty, monkeypatch):
    def none(self):
        raise OSError("no locks available")

    shards = Shards.open(tars(2))
    monkeypatch.setattr(FileLock, "acquire", none)
    assert fill(empty, towers, shards).shards == 2
    assert_whole(empty, towers, shards)


def test_a_full_disk_is_told_in_one_line_and_what_is_done_stays(tars, towers, empty, monkeypatch):
    shards = Shards.open(tars(2))
    fill(empty, towers, shards, batch=5)
    empty.path(shards.index[1]).unlink()
    monkeypatch.setattr(Path, "write_bytes", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(RunError, match=r"^cannot write .* No space left on device[^\n]*$"):
        fill(empty, towers, shards)
    assert content(empty, shards).shards == 1


WORK = """
import sys, torch
from pathlib import Path
from steering.clip.reference import fill_cache as filling
from steering.clip.reference.cache import Cache
from steering.clip.reference.cache import Manifest
from steering.clip.reference.load import load_reference
from steering.clip.data.shards import Shards

torch.set_num_threads(1)
folder, pattern, workers, rank, pause = sys.argv[1:]
if float(pause):
    import time
    honest = filling.encode
    filling.encode = lambda *given: (time.sleep(float(pause)), honest(*given))[1]
cache, shards = Cache(Path(folder), Manifest.read(Path(folder))), Shards.open(pattern)
towers, share = load_reference(cache.manifest.ref), (int(rank), 2)
done = filling.fill(cache, towers, shards, batch=5, workers=int(workers), share=share)
print(done.shards, flush=True)
"""


def start(cache: Cache, pattern: str, *, workers: int = 0, rank: int = 0, pause: float = 0.0) -> subprocess.Popen:
    command = [sys.executable, "-c", WORK, str(cache.folder), pattern, str(workers), str(rank), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))


def finished(cache: Cache) -> int:
    return len(list((cache.folder / "shards").glob("*.safetensors")))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_in_the_middle_it_continues_with_what_is_left(tars, towers, empty, workers):
    pattern = tars(12)
    shards = Shards.open(pattern)
    process = start(empty, pattern, workers=workers, pause=0.1)
    while finished(empty) < 3 and process.poll() is None:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    kept = finished(empty)
    assert 3 <= kept < 12
    assert fill(empty, towers, shards).shards == 12 - kept
    assert_whole(empty, towers, shards)


@pytest.mark.slow
def test_two_processes_share_the_work_and_one_finishes_what_the_other_is_killed_at(tars, towers, empty):
    pattern = tars(16)
    shards = Shards.open(pattern)
    one, two = start(empty, pattern, pause=0.1), start(empty, pattern, rank=1, pause=0.1)
    while finished(empty) < 6 and one.poll() is None:
        time.sleep(0.02)
    os.kill(two.pid, signal.SIGKILL)
    two.communicate()
    out, err = one.communicate(timeout=120)
    assert one.returncode == 0, err
    assert content(empty, shards).shards == 16
    assert 0 < int(out.split()[-1]) <= 16
    assert_whole(empty, towers, shards)


@pytest.mark.slow
def test_two_processes_make_no_shard_twice(tars, towers, empty):
    pattern = tars(16)
    processes = [start(empty, pattern, rank=rank, pause=0.02) for rank in (0, 1)]
    outs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outs
    assert sum(int(out.split()[-1]) for out, _ in outs) == 16
    assert_whole(empty, towers, Shards.open(pattern))
