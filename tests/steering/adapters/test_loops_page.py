"""The examples of docs/loops.md run as they stand there."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[3] / "docs" / "loops.md"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of hosts
    pytest.mark.skipif(not PAGE.exists(), reason="only a checkout has the page"),
]
HOSTS = {"transformers": "transformers", "TRL": "trl", "Lightning": "lightning", "Accelerate": "accelerate"}


@pytest.mark.parametrize("title", [*HOSTS, "open_clip"])
def test_an_example_runs_as_it_stands_there(title, tmp_path, monkeypatch):
    pytest.importorskip(HOSTS.get(title, "open_clip"))
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(rf"^## {title}\n\n```python\n(.*?)```", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    exec(compile(code, title, "exec"), {"__name__": title})
