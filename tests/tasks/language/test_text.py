"""Speeches as tokens: what is misread is known, and every token knows its characters."""

import pytest
import torch

from steering.tasks.language.text import speeches, tokenise, vocabulary

TEXTS = ["Mr. President, we'll grow 3 % - honestly.", "My fellow Americans: caf\u00e9 \u201ctalk\u201d is over."]


def pieces(tokens):
    """The text of every token."""
    ends = tokens.ends.tolist()
    return [tokens.text[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def test_the_characters_of_all_tokens_are_the_text():
    tokens = tokenise(TEXTS)
    assert "".join(pieces(tokens)) == tokens.text == " " + " ".join(TEXTS)
    assert len(tokens.ids) == len(tokens.wrong) == len(tokens.ends) and int(tokens.ids.max()) < vocabulary()


def test_without_noise_nothing_is_misread():
    tokens = tokenise(TEXTS)
    assert not tokens.wrong.any()


def test_tokens_are_marked_wrong_exactly_where_words_differ():
    """Words stay words, so those of the misread text stand where those of the right one do."""
    text = speeches()["train"][0][:4000]
    tokens = tokenise([text], noise=0.3, seed=1)
    words, misread = text.split(), tokens.text.split()
    assert len(words) == len(misread)
    starts = [0, *tokens.ends.tolist()]
    differing = set()
    position = 0
    for right, read in zip(words, misread, strict=True):
        position += 1  # the space before it
        if right != read:
            differing.update(range(position, position + len(read)))
        position += len(read)
    for wrong, begin, end in zip(tokens.wrong.tolist(), starts, tokens.ends.tolist(), strict=False):
        assert wrong == (end - 1 in differing), tokens.text[begin:end]


def test_about_the_share_of_words_that_was_asked_for_is_misread_and_another_seed_misreads_others():
    text = speeches()["train"][0]
    share = [
        sum(a != b for a, b in zip(text.split(), tokenise([text], 0.3, seed).text.split(), strict=True))
        / len(text.split())
        for seed in (1, 2)
    ]
    assert share == [pytest.approx(0.3, abs=0.03)] * 2  # 0.03 is three standard errors; a number is never misread
    assert tokenise([text], 0.3, 1).text != tokenise([text], 0.3, 2).text
    assert tokenise([text], 0.3, 1).text == tokenise([text], 0.3, 1).text


def test_the_three_parts_are_different_speeches():
    parts = speeches()
    assert {name: len(texts) for name, texts in parts.items()} == {"train": 46, "reference": 7, "held_out": 8}
    every = [text for texts in parts.values() for text in texts]
    assert len(set(every)) == len(every)
    assert torch.tensor([len(text) for text in every]).min() > 5000
