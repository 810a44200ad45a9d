"""The two ways a run ends badly, each one line for the person who reads it."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user typed or supplied is wrong: what was got, what is allowed, what to do. Exit code 2."""

    local = False


class RunError(RuntimeError):
    """The run itself failed (a full disk, NaN in the loss); what is on disk is still good. Exit code 1.

    Attributes:
        local: whether it befell one process of several, which then has to say so itself.
    """

    local = False


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """Returns '; did you mean X?' when a name is close to ``word``, else nothing; goes behind a clause."""
    close = difflib.get_close_matches(word, list(names), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


class Elsewhere(RunError):
    """Another process of this run failed, and says why."""
