"""Remote shards: fetched once, kept within a bound, and unusable rather than fatal when they do not come."""

import functools
import json
import os
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context

import pytest
from filelock import FileLock
from shard_files import pairs

from steering.clip.data import shard_files
from steering.clip.data.images import Undecodable
from steering.clip.data.shard_files import DownloadCache, ShardFiles
from steering.clip.data.shards import Shards
from steering.errors import RunError, UserError


def captions(shards):
    return [shards.caption(i).removeprefix("caption of ") for i in range(len(shards))]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STEERING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shard_files, "WAIT", 0.0)
    return tmp_path / "cache"


class Server(SimpleHTTPRequestHandler):
    """Files of a folder, and a list of what was asked for."""

    requests: list[str] = []  # noqa: RUF012

    def do_GET(self):
        self.requests.append(self.path)
        super().do_GET()

    def log_message(self, format, *_):
        pass


@pytest.fixture
def server(tmp_path):
    Server.requests.clear()
    (tmp_path / "there").mkdir()
    handler = functools.partial(Server, directory=str(tmp_path / "there"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_shard_behind_a_pipe_is_read_like_a_local_one_and_fetched_once(tmp_path):
    pairs(tmp_path / "0.tar", "abc")
    pairs(tmp_path / "1.tar", "d")
    pattern = f"pipe:echo x >> {tmp_path}/log; cat {tmp_path}/{{0..1}}.tar"
    for _ in range(2):
        shards = Shards.open(pattern)
        assert captions(shards) == ["a", "b", "c", "d"] and shards.remote
        assert [shard.size for shard in shards.index] == [os.path.getsize(tmp_path / f"{i}.tar") for i in (0, 1)]
    assert (tmp_path / "log").read_text() == "x\nx\n"


def test_shards_of_a_web_server_are_counted_by_its_side_files_and_fetched_when_read(tmp_path, server):
    for name in range(4):
        pairs(tmp_path / f"there/{name}.tar", [f"{name}{k}" for k in range(5)])
    (tmp_path / "there/sizes.json").write_text(json.dumps({f"{name}.tar": 5 for name in range(4)}))
    shards = Shards.open(f"{server}/{{0..3}}.tar")
    assert len(shards) == 20 and shards.caption(12) == "caption of 22" and shards.caption(13) == "caption of 23"
    assert [path for path in Server.requests if path.endswith(".tar")] == ["/0.tar", "/2.tar"]
    assert captions(Shards.open(f"{server}/{{0..3}}.tar")) == [f"{name}{k}" for name in range(4) for k in range(5)]
    assert sorted(path for path in Server.requests if path.endswith(".tar")) == [f"/{name}.tar" for name in range(4)]


def test_a_side_file_that_is_wrong_about_the_first_remote_shard_is_told(tmp_path, server, capfd):
    pairs(tmp_path / "there/0.tar", "abc")
    (tmp_path / "there/sizes.json").write_text('{"0.tar": 2}')
    Shards.open(f"{server}/0.tar")
    assert "/0.tar is said to hold 2 samples and holds 3: correct the file beside it" in capfd.readouterr().err


def test_a_remote_shard_that_does_not_come_is_refused_before_a_run_and_unusable_in_it(tmp_path, server):
    for name in "01":
        pairs(tmp_path / f"there/{name}.tar", "ab")
    with pytest.raises(UserError, match=r"/2.tar cannot be read: could not be fetched in 3 tries: exit code 22"):
        Shards.open(f"{server}/{{0..2}}.tar")
    assert Server.requests.count("/2.tar") == 3
    assert len(Server.requests) == 2 + 3 + 2, "side files are not asked for again for every shard"
    (tmp_path / "there/sizes.json").write_text(json.dumps({"0.tar": 2, "1.tar": 2, "2.tar": 2}))
    shards = Shards.open(f"{server}/{{0..2}}.tar")
    for number in (4, 5):
        with pytest.raises(Undecodable, match="shard unreadable"):
            shards.picture(number)
    assert Server.requests.count("/2.tar") == 6, "it is not asked for again for every sample"
    assert shards.caption(3) == "caption of b"


def test_the_hub_is_read_by_its_own_library_and_any_of_its_errors_is_one_line(tmp_path, monkeypatch):
    pairs(tmp_path / "0.tar", "ab")

    class Hub:
        def open(self, url, mode, block_size):
            if not url.endswith("datasets/me/pairs/0.tar"):
                raise ConnectionError("(MaxRetryError(\nno network\n" * 80)
            return open(tmp_path / "0.tar", mode)

    monkeypatch.setattr("huggingface_hub.HfFileSystem", Hub)
    assert captions(Shards.open("hf://datasets/me/pairs/0.tar")) == ["a", "b"]
    with pytest.raises(UserError, match=r"cannot be read: could not be fetched in 3 tries: \(MaxRetryError\(") as error:
        Shards.open("hf://datasets/me/pairs/1.tar")
    assert len(str(error.value)) < 400 and "\n" not in str(error.value)


@pytest.mark.parametrize(("program", "scheme"), [("aws", "s3"), ("gsutil", "gs")])
def test_buckets_are_asked_through_the_program_of_their_owner(tmp_path, monkeypatch, program, scheme):
    """The program is one of ours that tells what it was asked for and gives a file, if it has it."""
    pairs(tmp_path / "0.tar", "abc")
    (tmp_path / program).write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/log\ncase "$*" in *0.tar*) cat {tmp_path}/0.tar;; *) exit 1; esac\n'
    )
    (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert captions(Shards.open(f"{scheme}://bucket/my data/0.tar")) == ["a", "b", "c"]
    needed = "s3 cp s3://bucket/my data/0.tar -" if scheme == "s3" else "cat gs://bucket/my data/0.tar"
    assert (tmp_path / "log").read_text().splitlines().count(needed) == 1


def test_the_copies_stay_within_their_bound_and_the_longest_unused_goes(tmp_path, own_cache, monkeypatch):
    for name in range(4):
        pairs(tmp_path / f"{name}.tar", "ab")
    size = os.path.getsize(tmp_path / "0.tar")
    fetched = DownloadCache(3 * size)
    urls = [f"pipe:echo {name} >> {tmp_path}/log; cat {tmp_path}/{name}.tar" for name in range(4)]

    def use(which):
        fetched._touched.clear()  # as if a minute had passed
        time.sleep(0.01)
        file = fetched.open(urls[which])
        assert os.fstat(file).st_size == size
        os.close(file)
        assert sum(path.stat().st_size for path in (own_cache / "shards").glob("*.tar")) <= 3 * size

    for which in (0, 1, 2, 0, 3, 0, 2, 1):
        use(which)
    assert (tmp_path / "log").read_text().split() == ["0", "1", "2", "3", "1"]


def test_what_came_only_in_part_is_not_kept(tmp_path, own_cache):
    pairs(tmp_path / "0.tar", "ab")
    files = ShardFiles()
    for command in (f"head -c 1000 {tmp_path}/0.tar; exit 3", "true", "no-such-program-at-all 2> /dev/null"):
        with pytest.raises(OSError, match=r"could not be fetched in 3 tries: (exit code|nothing came)"):
            with files.open(f"pipe:{command}"):
                pass
    assert {path.suffix for path in (own_cache / "shards").iterdir()} == {".lock", ".failed"}


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("echo x; sleep 9", "nothing came for 0.2 seconds"),
        ("sleep 9", "nothing came for 0.2 seconds"),
        ("cat", "nothing came"),
    ],
)
def test_what_never_ends_and_what_waits_for_a_person_is_given_up(monkeypatch, command, message):
    monkeypatch.setattr(shard_files, "STALLED", 0.2)
    monkeypatch.setattr(shard_files, "TRIES", 1)
    with pytest.raises(OSError, match=message), ShardFiles().open(f"pipe:{command}"):
        pass


def test_who_waits_for_another_process_says_so_and_gives_up_when_that_one_stands_still(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(shard_files, "PATIENCE", 0.1)
    (tmp_path / "written").write_text("x")

    def wait():
        with pytest.raises(RunError, match=r"another process holds .*lock and does nothing: end it"):
            with shard_files.locked(tmp_path / "lock", "index shards"):
                pass

    with FileLock(tmp_path / "lock"):
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(0.5)
        assert thread.is_alive() and capfd.readouterr().err.startswith("waiting for another process to index shards (")
        os.utime(tmp_path / "written", (0, 0))
        thread.join(5)
        assert not thread.is_alive() and capfd.readouterr().err == ""


def test_who_waits_for_a_shard_that_does_not_come_does_not_try_again_but_the_next_one_does(tmp_path, own_cache):
    fetched, url = DownloadCache(1e9), f"pipe:echo x >> {tmp_path}/log; exit 1"
    faults = []

    def want():
        with pytest.raises(OSError, match="3 tries: exit code 1") as error:
            fetched.open(url)
        faults.append(error)

    threads = [threading.Thread(target=want) for _ in range(3)]
    (own_cache / "shards").mkdir(parents=True)
    with FileLock(fetched._path(url).with_suffix(".lock")):
        for thread in threads:
            thread.start()
        time.sleep(0.2)
    for thread in threads:
        thread.join()
    assert len(faults) == 3 and (tmp_path / "log").read_text() == "x\n" * 3
    want()
    assert (tmp_path / "log").read_text() == "x\n" * 6


def test_a_remote_shard_that_changes_is_not_mistaken_for_the_old_one(tmp_path, own_cache):
    pairs(tmp_path / "0.tar", "ab")
    shards = Shards.open(f"pipe:cat {tmp_path}/0.tar")
    for path in (own_cache / "shards").glob("*.tar"):
        path.unlink()
    pairs(tmp_path / "0.tar", [f"{i}" for i in range(30)])
    with pytest.raises(Undecodable, match="shard unreadable"):
        shards.caption(0)


def _read(url, results):
    results.put(captions(Shards.open(url)))


@pytest.mark.slow
def test_processes_that_want_the_same_shard_fetch_it_once(tmp_path):
    pairs(tmp_path / "0.tar", "abc")
    (tmp_path / "sizes.json").write_text("{}")
    context = get_context("fork")
    results = context.Queue()
    url = f"pipe:echo x >> {tmp_path}/log; sleep 0.3; cat {tmp_path}/0.tar"
    processes = [context.Process(target=_read, args=(url, results)) for _ in range(4)]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in processes] == [["a", "b", "c"]] * 4
    for process in processes:
        process.join()
    assert (tmp_path / "log").read_text() == "x\n"
