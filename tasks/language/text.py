"""Speeches as tokens, with the errors of a character recognition that are known to be there."""

import json
import lzma
import random
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parent
ERRORS = 0.35  # share of the characters of a misread word that are wrong
# Letters that scanners take for others.
LOOK_ALIKES = {
    **{"a": "ou", "b": "h6", "c": "eo", "d": "ol", "e": "co", "f": "t", "g": "q9", "h": "bn", "i": "l1", "j": "i"},
    **{"k": "h", "l": "1i", "m": "n", "n": "ru", "o": "0c", "p": "n", "q": "g", "r": "nv", "s": "5z", "t": "fl"},
    **{"u": "v", "v": "u", "w": "v", "x": "z", "y": "v", "z": "2"},
}
Part = Literal["train", "reference", "held_out"]


class Tokens(NamedTuple):
    """A text as tokens.

    Attributes:
        ids: ``[tokens]`` int64.
        wrong: ``[tokens]`` bool, those of a misread word.
        ends: ``[tokens]`` int64, where in the text a token ends; it begins where the one before it ends.
        text: all of it, as it was tokenised, in its own case.
    """

    ids: Tensor
    wrong: Tensor
    ends: Tensor
    text: str


@cache
def speeches() -> dict[Part, list[str]]:
    """The bundled State of the Union speeches, 1961 to 2021: those to train on, the reference's, those to test on."""
    return json.loads(lzma.decompress((FOLDER / "speeches.json.xz").read_bytes()))


@cache
def _tokenizer():
    from open_clip.tokenizer import SimpleTokenizer  # which takes seconds to import

    return SimpleTokenizer(bpe_path=str(FOLDER / "merges.txt.gz"))


def vocabulary() -> int:
    """The number of different tokens."""
    return _tokenizer().vocab_size


@cache
def _word_tokens(word: str) -> tuple[list[int], list[int]]:
    """The tokens of a word and the number of its characters that each of them covers."""
    tokens = _tokenizer().encode(word)
    lengths = [len(_tokenizer().decoder[token].removesuffix("</w>")) for token in tokens]
    if sum(lengths) != len(word):  # characters of several bytes
        lengths = [0] * (len(tokens) - 1) + [len(word)]
    return tokens, lengths


def tokenise(texts: Sequence[str], noise: float = 0.0, seed: int = 0) -> Tokens:
    """Texts one behind the other, a share of whose words are misread: look-alike letters, lost and doubled ones.

    Args:
        texts: to be joined.
        noise: share of the words that are misread.
        seed: of the errors.
    """
    chance = random.Random(seed)
    ids, wrong, ends, pieces, position = [], [], [], [], 0
    for text in texts:
        for match in re.finditer(r"\s*(\S+)", text + "\n"):
            word = match[1]
            misread = chance.random() < noise and any(letter.isalpha() for letter in word)
            if misread:
                word = _misread(word, chance)
            pieces.append(f" {word}")
            position += 1
            for part in _tokenizer().pat.findall(word.lower()):
                tokens, lengths = _word_tokens(part)
                ids += tokens
                wrong += [misread] * len(tokens)
                ends += (position + np.cumsum(lengths)).tolist()
                position += sum(lengths)
    return Tokens(torch.tensor(ids), torch.tensor(wrong), torch.tensor(ends), "".join(pieces))


def _misread(word: str, chance: random.Random) -> str:
    """The word with some of its characters wrong, at least one."""
    while True:
        letters = []
        for letter in word:
            if chance.random() >= ERRORS or not letter.isalpha():
                letters.append(letter)
                continue
            kind = chance.random()
            if kind < 0.7:
                letters.append(chance.choice(LOOK_ALIKES.get(letter.lower(), "*")))
            elif kind < 0.85:
                letters.append(letter * 2)
        misread = "".join(letters)
        if misread and misread != word:
            return misread
