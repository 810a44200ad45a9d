"""A rank that is killed or stopped is named in one line by one of those that are left, and soon."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.slow


def start(folder, ranks: int) -> list[subprocess.Popen]:
    """Some processes that train together, started by hand."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    typed = "run blobs --steps 100000 --batch 60 --seeds 1 --arms erm --threads 1 --out".split()
    processes = []
    for rank in range(ranks):
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "STEER_PATIENCE": "3"}
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
        command = [sys.executable, "-m", "steering", *typed, str(folder / "run")]
        options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, env=os.environ | meeting | place, **options))
    deadline = time.monotonic() + 60
    while not (folder / "run" / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    return processes


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("blow, words", [(signal.SIGKILL, "has gone: it was killed"), (signal.SIGSTOP, "is stopped")])
def test_a_rank_that_is_killed_or_stopped_is_named_by_the_others(tmp_path, victim, blow, words):
    processes = start(tmp_path, 2)
    try:
        processes[victim].send_signal(blow)
        _, error = processes[1 - victim].communicate(timeout=40)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    lines = re.findall(r"^steer: .*", error, flags=re.MULTILINE)
    assert lines and len(lines) == 1, error
    assert f"rank {victim} (pid {processes[victim].pid} on " in lines[0] and words in lines[0]
    assert processes[1 - victim].returncode == 1
