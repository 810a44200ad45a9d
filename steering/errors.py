"""The two ways a run ends badly, each one line for the person who reads it, and how any other error becomes one."""

import difflib
import re
from collections.abc import Iterable
from itertools import islice

# What no line of a terminal and no page shall hold: control and bidirectional characters, halves of surrogates.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff\uffff]"
)
_ADVICE = {  # what to do about errors of libraries, by what they say
    r"more than 1 value per channel": "batch normalisation needs two samples at a time: take a --batch and a "
    "recipe.micro_batch of at least 2 for each process",
    r"DataLoader worker|shared memory|shm|Bus error": "a process that reads data was ended, for want of memory as a "
    "rule: --set options.workers=0, or give the container more shared memory (docker run --shm-size)",
    r"out of memory|MemoryError|can't allocate|Unable to allocate": "take a smaller --batch, or --set "
    "recipe.micro_batch=8 say",
    r"home directory": "write the path in full, without ~",
    r"NCCL|[Gg]loo|ProcessGroup|TCPStore|by peer|Broken pipe|Timed out": "another process of this run was lost: "
    "see what it said, and go on with --resume",
    r"LocalEntryNotFound|OfflineMode|ConnectionError|ConnectError|Max retries|[Nn]ame resolution|getaddrinfo|resolve "
    r"host|Network is unreachable": "without a network, name files of this machine",
    r"RecursionError": "something is nested too deeply",
}


def clean(text: str, most: int | None = None) -> str:
    """Text without control, bidirectional and broken characters; of one that is too long its beginning and its end."""
    if most is not None and len(text) > most:
        text = f"{text[: most * 2 // 3]} ... {text[-most // 3 :]}"
    return _UNPRINTABLE.sub("\ufffd", text)


class UserError(ValueError):
    """Something the user typed or supplied is wrong: what was got, what is allowed, what to do. Exit code 2."""

    local = False

    def __str__(self) -> str:
        return clean(super().__str__(), MOST)


class RunError(RuntimeError):
    """The run itself failed (a full disk, NaN in the loss); what is on disk is still good. Exit code 1.

    Attributes:
        local: whether it befell one process of several, which then has to say so itself.
    """

    local = False

    def __str__(self) -> str:
        return clean(super().__str__(), MOST)


MOST = 600  # characters of a message: names of files may be long, and many


class Elsewhere(RunError):
    """Another process of this run failed, and says why."""


def explained(error: BaseException) -> str:
    """One line of an error that is neither: what happened and what to do."""
    if isinstance(error, UserError | RunError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        what = f"cannot read or write {error.filename or 'a file'}: {error.strerror}"
    else:
        what = ": ".join(filter(None, [type(error).__name__, " ".join(str(error)[: 10 * MOST].split())]))
    worker = re.search(r"DataLoader worker \(pid(?:\(s\))? (\d+)\)? (is killed|exited)", what)
    if worker:  # torch says so in the middle of whatever is done
        what = f"loading worker (pid {worker[1]}) has gone: {what}"
    advice = next((advice for pattern, advice in _ADVICE.items() if re.search(pattern, what)), "")
    return f"{clean(what, MOST // 2)}{'; ' * bool(advice)}{advice}"


def shown(value: object, most: int = 80) -> str:
    """A value for a message, in a few characters."""
    try:
        return clean(repr(value), most)
    except Exception:  # an integer of too many digits, say
        return f"a {type(value).__name__}"


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """Returns '; did you mean X?' when a name is close to ``word``, else nothing; goes behind a clause."""
    close = difflib.get_close_matches(word[:MOST], islice(names, MOST), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""
