"""Fifty things that befall a training, one after the other: nothing is lost or seen twice, all ends in one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc"),
    pytest.mark.skipif(not (ROOT / "benchmarks").exists(), reason="only a checkout has the benchmarks"),
]


@pytest.mark.timeout(1200)  # half an hour of a busy machine would be too long, five minutes are too short
def test_fifty_kills_lose_nothing_and_repeat_nothing(tmp_path):
    command = [sys.executable, "-m", "benchmarks.faults", "--kills", "50", "--shards", "6", "--epochs", "2"]
    done = subprocess.run(
        [*command, "--folder", str(tmp_path), "--out", str(tmp_path / "results")],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    (result,) = (tmp_path / "results").glob("*.json")
    assert {goal["verdict"] for goal in json.loads(result.read_text())["goals"]} == {"met"}
