import pytest
import torch

from steering.clip.gallery import draw, pick
from steering.clip.retrieval import BLOCK, ranks, recall, zero_shot


def test_a_model_that_knows_every_match_recalls_all_at_one():
    features = torch.eye(30)
    assert recall(features, features, 1) == 1.0


def test_a_model_that_says_the_same_of_everything_does_no_better_than_chance():
    """All 40 scores tie, so the expected rank is 19.5: not within the best 10."""
    same = torch.ones(40, 8)
    assert ranks(same, same).tolist() == [19.5] * 40
    assert recall(same, same, 10) == 0.0


def test_ranks_by_hand():
    """Query 0 scores (.1, .9, .5) and wants the last: one beats it. Query 1 scores (.2, .3, .4) and wants the first."""
    queries = torch.tensor([[0.1, 0.9, 0.5], [0.2, 0.3, 0.4]])
    assert ranks(queries, torch.eye(3), torch.tensor([2, 0])).tolist() == [1.0, 2.0]


def test_blocks_change_nothing():
    torch.manual_seed(0)
    queries, gallery = torch.randn(BLOCK + 7, 8), torch.randn(BLOCK + 7, 8)
    scores = queries @ gallery.T
    whole = (scores > scores.diagonal()[:, None]).sum(1).float()
    assert torch.equal(ranks(queries, gallery), whole)


def test_zero_shot_counts_a_right_group_as_right():
    images, classes = torch.eye(3), torch.eye(3)
    groups = torch.tensor([0, 0, 1])
    assert zero_shot(images, classes, torch.tensor([0, 1, 1])) == pytest.approx(2 / 3)
    assert zero_shot(images, classes, torch.tensor([0, 0, 1]), groups) == 1.0


def test_the_gallery_takes_its_queries_without_looking_at_them():
    assert pick(["a"] * 11, 3) == [0, 5, 10]
    assert pick(["a"], 3) == [0]


def test_a_gallery_is_a_picture():
    from PIL import Image

    pictures = [Image.new("RGB", (8, 8), (20 * i, 0, 0)) for i in range(8)]
    png = draw(["one", "two & <b>"], [0, 3], pictures, {"reference": torch.rand(2, 8), "drrho": torch.rand(2, 8)})
    assert png.startswith(b"\x89PNG")
