"""The examples of docs/own.md run as they stand there."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent / "docs" / "own.md"
pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="only a checkout has the page")


@pytest.mark.parametrize("kind", ["rule", "selector", "reference", "task"])
def test_an_example_runs_as_it_stands_there(kind, tmp_path, monkeypatch):
    (code,) = re.findall(rf"^## A {kind}\n.*?```python\n(.*?)```", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    (tmp_path / "mine.py").write_text(code)  # a module of its own, as a plugin has
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "mine", raising=False)
    __import__("mine")
