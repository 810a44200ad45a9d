"""Parity with the authors' own code, DRRho-CLIP, on figures that it gave in double precision.

``data/drrho_clip.json`` says in ``source`` what was run. Their estimator divides by n where their loss
divides by n - 1; ours averages over the n - 1 negatives throughout. That leaves three constants: epsilon is
scaled by n / (n - 1), their gradient is larger by n / (n - 1), and their log u is smaller by
log(n / (n - 1)). Their loss adds the two directions where ours averages over the 2 n anchors: a factor 2.
"""

import json
import math
from pathlib import Path

import pytest
import torch

from steering import KL, DualMemory, Pairs, Steerer

CASES = json.loads((Path(__file__).parent / "data" / "drrho_clip.json").read_text())["cases"]


def name(case) -> str:
    reference = "reference" if case["reference_image"] else "alone"
    return f"{reference}-tau{case['tau']}-eps{case['eps']}-gamma{case['gamma']}"


def tensor(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """To 1e-10 of the largest number."""
    return bool((found - wanted).abs().max() <= 1e-10 * wanted.abs().max())


@pytest.mark.parametrize("case", CASES, ids=name)
def test_gradients_and_moving_averages_equal_those_of_the_official_code(case):
    samples, tau, n = case["samples"], case["tau"], len(case["steps"][0]["ids"])
    rule = KL(temperature=tau, epsilon=case["eps"] * n / (n - 1))
    memory = DualMemory(2 * samples, gamma=case["gamma"])
    steerer = Steerer(rule, reference_scale=1.0, memory=memory)
    for step in case["steps"]:
        ids = torch.tensor(step["ids"])
        image, text = tensor(step["image"]).requires_grad_(), tensor(step["text"]).requires_grad_()
        reference = None
        if case["reference_image"]:
            reference = Pairs(tensor(case["reference_image"])[ids], tensor(case["reference_text"])[ids])
        loss = steerer(Pairs(image, text), reference, ids=ids).loss
        by_image, by_text = torch.autograd.grad(2 * n / (n - 1) * loss, (image, text))
        assert close(by_image, tensor(step["image_gradient"]))
        assert close(by_text, tensor(step["text_gradient"]))
        if case["gamma"] < 1:  # else nothing is remembered
            for places, log_u in ((2 * ids, step["log_u_image"]), (2 * ids + 1, step["log_u_text"])):
                dual = memory.read(places)
                assert dual is not None
                found = dual[:, 0] / tau - math.log(n / (n - 1))
                assert torch.allclose(found, tensor(log_u), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", [case for case in CASES if case["gamma"] == 1], ids=name)
def test_without_a_moving_average_log_u_is_the_fresh_level(case):
    tau, step = case["tau"], case["steps"][0]
    ids, n = torch.tensor(step["ids"]), len(step["ids"])
    values, mask = Pairs(tensor(step["image"]), tensor(step["text"])).rows()
    if case["reference_image"]:
        reference = Pairs(tensor(case["reference_image"])[ids], tensor(case["reference_text"])[ids])
        values = values - reference.rows()[0]
    dual = KL(temperature=tau, epsilon=case["eps"] * n / (n - 1)).dual(values, mask)[:, 0]
    log_u = tensor(step["log_u_image"] + step["log_u_text"])
    assert torch.allclose(dual / tau - math.log(n / (n - 1)), log_u, rtol=1e-10, atol=1e-10)


def test_the_recorded_figures_cover_a_moving_average_and_a_reference():
    assert len(CASES) == 5 and all(len(case["steps"]) == 3 for case in CASES)
    assert {bool(case["reference_image"]) for case in CASES} == {True, False}
    assert any(case["gamma"] < 1 for case in CASES)
    for case in CASES:
        seen = [set(step["ids"]) for step in case["steps"]]
        assert seen[0] & seen[1] and seen[1] & seen[2], "some samples come back, so that the average is used"
