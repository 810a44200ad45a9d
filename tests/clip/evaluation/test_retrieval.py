import math

import pytest
import torch
from scipy.stats import binomtest

from steering.clip.evaluation import retrieval
from steering.clip.evaluation.gallery import draw, pick
from steering.clip.evaluation.retrieval import (
    BLOCK,
    both_ways,
    mean_of_classes,
    rank_own,
    recall,
    share,
    wilson,
)
from steering.errors import RunError


def everyone(count: int) -> torch.Tensor:
    return torch.arange(count)


def test_a_model_that_knows_every_match_recalls_all_at_one():
    features = torch.eye(30)
    assert recall(features, features, 1).value == 1.0


@pytest.mark.parametrize("k", [1, 10])
def test_a_model_that_says_the_same_of_everything_hits_by_chance(k):
    """All 40 scores tie: as many orders put one's own among the first k as by chance."""
    same = torch.ones(40, 8)
    assert recall(same, same, k).value == pytest.approx(k / 40, abs=1e-12)


@pytest.mark.parametrize("odd", [torch.nan, torch.inf, -torch.inf])
def test_features_that_are_no_numbers_are_an_error_and_no_number(odd):
    fine, broken = torch.randn(20, 4), torch.randn(20, 4)
    broken[7, 2] = odd
    for queries, gallery in ((fine, broken), (broken, fine)):
        with pytest.raises(RunError, match="infinite or no number"):
            recall(queries, gallery, 10)


@pytest.mark.parametrize("captions", [[1, 1, 1, 1], [2, 1, 3], [5, 5, 5, 5, 5, 5], [1], [9, 1]])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_a_model_that_says_the_same_of_everything_hits_by_chance_whatever_the_number_of_captions(captions, k):
    counts = torch.tensor(captions)
    owner = torch.arange(len(counts)).repeat_interleave(counts)
    result = both_ways(torch.ones(len(counts), 4), torch.ones(len(owner), 4), owner, (k,))
    texts = int(counts.sum())
    missed = [math.comb(texts - count, k) / math.comb(texts, k) if k <= texts else 0 for count in captions]
    assert result[f"i2t_r{k}"].value == pytest.approx(1 - sum(missed) / len(missed), abs=1e-9)
    assert result[f"t2i_r{k}"].value == pytest.approx(min(1, k / len(counts)))


def test_ranks_by_hand():
    """Query 0 scores (.1, .9, .5) and wants the last: one beats it. Query 1 scores (.2, .3, .4) and wants the first."""
    queries = torch.tensor([[0.1, 0.9, 0.5], [0.2, 0.3, 0.4]])
    result = rank_own(queries, torch.eye(3), everyone(3), torch.tensor([2, 0]))
    assert result.ahead.tolist() == [1.0, 2.0]
    assert result.tied.tolist() == [0.0, 0.0]


def test_a_picture_is_a_hit_where_any_of_its_captions_is_found():
    """Picture 0 has captions 0 and 1, the second of which it finds; picture 1 has caption 2 and finds it last."""
    images = torch.tensor([[0.2, 0.9, 0.5], [0.3, 0.4, 0.1]])
    result = both_ways(images, torch.eye(3), torch.tensor([0, 0, 1]), (1, 2))
    assert result["i2t_r1"].value == 0.5
    assert result["i2t_r2"].value == 0.5
    # Captions score the pictures (.2, .3), (.9, .4), (.5, .1): only the second finds its own first.
    assert result["t2i_r1"].value == pytest.approx(1 / 3)
    assert result["t2i_r2"].value == 1.0


def test_ones_own_captions_are_no_rivals_of_each_other():
    """Both captions of picture 0 beat all others, equally: still a sure hit at one."""
    images, texts = torch.eye(2), torch.tensor([[1.0, 0], [1.0, 0], [0, 1.0]])
    assert both_ways(images, texts, torch.tensor([0, 0, 1]), (1,))["i2t_r1"].value == 1.0


@pytest.mark.parametrize(("block", "tile", "kept"), [(5, 3, 0), (5, 3, 1 << 16), (1 << 14, 1 << 14, 1 << 16)])
def test_blocks_and_tiles_change_nothing(monkeypatch, block, tile, kept):
    queries, gallery = torch.randn(50, 8), torch.randn(50, 8)
    gallery[40:] = gallery[:10]  # ten ties
    scores = (queries.double() @ gallery.double().T).float()
    monkeypatch.setattr(retrieval, "BLOCK", block)
    monkeypatch.setattr(retrieval, "TILE", tile)
    monkeypatch.setattr(retrieval, "KEPT", kept)
    result = rank_own(queries, gallery, everyone(50), everyone(50))
    assert torch.equal(result.ahead, (scores > scores.diagonal()[:, None]).sum(1).double())
    assert result.tied.tolist() == [1.0] * 10 + [0.0] * 30 + [1.0] * 10


def test_more_queries_than_a_block_are_all_ranked():
    features = torch.nn.functional.normalize(torch.randn(BLOCK + 7, 8), dim=-1)
    assert recall(features, features, 1).value == 1.0


def test_the_best_answer_of_the_right_group_is_a_hit():
    groups = torch.tensor([0, 0, 1])
    assert rank_own(torch.eye(3), torch.eye(3), groups, torch.tensor([1, 0, 1])).hits(1).tolist() == [0.0, 1.0, 1.0]


@pytest.mark.parametrize(("hits", "trials"), [(0, 7), (3, 10), (12, 12)])
def test_the_interval_of_a_share_is_wilsons(hits, trials):
    expected = binomtest(hits, trials).proportion_ci(0.95, method="wilson")
    result = wilson(hits / trials, trials)
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_captions_that_hit_or_miss_together_are_worth_one_trial_a_picture():
    hits = torch.tensor([1.0, 0, 1, 1]).repeat_interleave(5)
    assert share(hits, torch.arange(4).repeat_interleave(5)).trials == pytest.approx(4)
    assert share(hits, everyone(20)).trials == pytest.approx(20)
    assert share(torch.ones(20), torch.arange(4).repeat_interleave(5)).trials == 4


def test_the_mean_over_classes_weighs_them_alike_and_leaves_out_those_without_pictures():
    labels = torch.tensor([0, 0, 0, 0, 3, 3])  # classes 1, 2 have none
    result = mean_of_classes(torch.tensor([1.0, 1, 1, 0, 0, 0]), labels)
    assert result.value == pytest.approx(0.375)
    assert 0 < result.low < result.value < result.high < 1


def test_the_interval_of_a_mean_over_classes_covers_as_often_as_it_says():
    """400 samples of three classes of unequal size; 95 % of 400 is 380, and 360 is four deviations less."""
    chances, counts = torch.tensor([0.9, 0.5, 0.2]), torch.tensor([200, 40, 20])
    labels = torch.arange(3).repeat_interleave(counts)
    truth, covered = float(chances.double().mean()), 0
    for _ in range(400):
        result = mean_of_classes(torch.bernoulli(chances[labels]), labels)
        covered += result.low <= truth <= result.high
    assert 360 <= covered <= 395


def test_one_picture_has_an_interval_too():
    result = mean_of_classes(torch.ones(1), torch.zeros(1, dtype=torch.int64))
    assert result.value == result.high == 1 and math.isclose(result.low, wilson(1, 1).low)


def test_the_gallery_takes_its_queries_without_looking_at_them():
    assert pick(["a"] * 11, 3) == [0, 5, 10]
    assert pick(["a"], 3) == [0]


def test_a_gallery_is_a_picture():
    from PIL import Image

    pictures = [Image.new("RGB", (8, 8), (20 * i, 0, 0)) for i in range(8)]
    scores = {"reference": torch.rand(2, 8), "drrho": torch.rand(2, 8)}
    png, failures = draw(["one", "two & <b>"], [0, 3], pictures.__getitem__, scores)
    assert png.startswith(b"\x89PNG") and not failures


TEXTS = [
    "$\\frac{1}{$ and $$",
    "$\\input{/etc/passwd}$",
    "[red]x[/red] [/] <b>&amp;</b>",
    "\u202eright to left\u202c",
    "\x00\x1b[31m\r\n\t",
    "\ud800\udfff",
    "a" * 100_000,
    "word " * 20_000,
    "\U0001f408 \u732b \u0627",
    "",
    "%s {} {0.__class__} \\",
]


def test_a_gallery_is_drawn_whatever_captions_and_names_hold(recwarn):
    from PIL import Image

    scores = {text: torch.rand(len(TEXTS), 3) for text in TEXTS[:8]}
    png, failures = draw(TEXTS, [0] * len(TEXTS), lambda _: Image.new("RGB", (8, 8)), scores)
    assert png.startswith(b"\x89PNG") and not failures and not recwarn.list


def test_a_picture_that_cannot_be_drawn_costs_itself_alone():
    from PIL import Image

    def picture(index):
        if index == 1:
            raise OSError("it is\ngone")
        return Image.new("RGB", (9000, 8))

    png, failures = draw(["a", "b"], [0, 1], picture, {"model": torch.rand(2, 2)})
    assert png.startswith(b"\x89PNG") and failures == ["it is gone"]
