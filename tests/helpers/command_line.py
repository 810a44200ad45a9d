"""The command as it is typed, in this process."""

import sys

import pytest

from steering import cli


def steer(monkeypatch, capsys, *words: str) -> tuple[int, list[str], list[str]]:
    """Exit code, and lines of both streams."""
    monkeypatch.setattr(sys, "argv", ["steer", *words])
    with pytest.raises(SystemExit) as left:
        cli.main()
    out, err = capsys.readouterr()
    return int(left.value.code or 0), out.splitlines(), err.splitlines()
