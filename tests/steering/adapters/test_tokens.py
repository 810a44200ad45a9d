"""What batches of Hugging Face's libraries hold: labels, columns, losses of tokens, and a reference's beside them."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from steering import Losses, UserError
from steering.adapters.tokens import Collator, align, losses_of_logits, reference_entries, row_numbers

MASK = torch.tensor([[False, True, False, True], [False, True, False, False]])
PRESENT = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
NAN = torch.nan
OF_LABELS = [[NAN, 1, NAN, 2], [NAN, 3, NAN, NAN]]


def test_importing_the_adapters_imports_no_host_and_no_torch():
    code = (
        "import sys, steering.adapters; "
        "assert not {'torch', 'transformers', 'trl', 'lightning', 'accelerate', 'open_clip'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "losses, expected",
    [
        (Losses(torch.tensor([1.0, 2.0, 3.0]), rows=torch.tensor([0, 0, 1])), OF_LABELS),
        (Losses(torch.tensor([3.0, 1.0, 2.0]), rows=torch.tensor([1, 0, 0])), OF_LABELS),
        (
            Losses(torch.tensor([[1.0, 2.0], [3.0, 9.0]]), torch.tensor([[1, 1], [1, 0]])),
            [[NAN, 1, NAN, 2], [NAN, 3, NAN, NAN]],
        ),
        (Losses(torch.arange(6.0), rows=torch.tensor([0, 0, 0, 0, 1, 1])), [[0, 1, 2, 3], [4, 5, NAN, NAN]]),
    ],
    ids=["of labels", "in any order", "with a mask", "of tokens"],
)
def test_losses_are_put_where_their_tokens_are(losses, expected):
    aligned = align(losses, 2, MASK, PRESENT)
    assert torch.equal(aligned.nan_to_num(-1), torch.tensor(expected).nan_to_num(-1))


def test_packed_samples_lie_one_behind_the_other():
    losses = Losses(torch.arange(4.0), rows=torch.tensor([0, 0, 1, 1]))
    assert align(losses, 2, torch.ones(1, 4, dtype=torch.bool)).tolist() == [[0, 1, 2, 3]]
    with pytest.raises(UserError, match=r"got \[2, 2\] of the first samples for \[5\]: truncate them"):
        align(losses, 2, torch.ones(1, 5, dtype=torch.bool))


def test_a_label_without_a_reference_loss_is_said():
    column = Losses(torch.tensor([[NAN, 1.0, NAN, 2.0], [NAN, 3.0, NAN, NAN]]))
    assert torch.equal(torch.as_tensor(reference_entries(column, MASK, {}).values), torch.tensor([1.0, 2, 3]))
    with pytest.raises(UserError, match=r"labels without a reference loss \(NaN\)"):
        reference_entries(column, MASK | ~MASK, {})


def test_documents_are_lines_or_begin_at_position_0():
    every = torch.ones(2, 3, dtype=torch.bool)
    assert row_numbers({}, every).tolist() == [0, 0, 0, 1, 1, 1]
    positions = torch.tensor([[0, 1, 0], [0, 1, 2]])
    assert row_numbers({"position_ids": positions}, every).tolist() == [0, 0, 1, 2, 2, 2]


def test_a_collator_keeps_the_columns_of_steering_from_the_one_it_wraps():
    def collate(samples):
        assert all(set(sample) == {"input_ids"} for sample in samples)
        return {
            "labels": torch.tensor([[5, 6, 7], [8, -100, -100]]),
            "attention_mask": torch.tensor([[1] * 3, [1, 0, 0]]),
        }

    samples = [
        {"input_ids": [5, 6, 7], "index": 4, "reference_loss": [NAN, 1.0, 2.0]},
        {"input_ids": [8], "index": 2, "reference_loss": [NAN]},
    ]
    batch = Collator(collate)(samples)
    assert batch["index"].tolist() == [4, 2]
    assert torch.equal(batch["reference_loss"].nan_to_num(-1), torch.tensor([[-1.0, 1, 2], [-1, -1, -1]]))
    samples[1]["reference_loss"] = [NAN, 1.0]
    with pytest.raises(UserError, match=r"reference_loss has one entry a token, got \[3, 2\] for \[3, 1\] tokens"):
        Collator(collate)(samples)
    numbers = [{"x": 1, "reference_loss": 0.5}, {"x": 2, "reference_loss": 1.5}]
    assert Collator(lambda x: {})(numbers)["reference_loss"].tolist() == [0.5, 1.5]


def test_losses_of_logits_are_cross_entropies_or_squared_errors():
    logits, labels = torch.randn(2, 3, 5, dtype=torch.float64), torch.tensor([[1, 2, -100], [0, 4, 3]])
    expected = nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    assert torch.allclose(losses_of_logits(logits, labels), expected)
    assert losses_of_logits(torch.tensor([[2.0], [3.0]]), torch.tensor([1.0, 3.0])).tolist() == [1, 0]


@pytest.mark.parametrize(
    "logits, labels, message",
    [
        (None, torch.zeros(2), "the model gives no logits"),
        (
            torch.zeros(2, 3),
            torch.zeros(3, dtype=torch.long),
            r"got torch.int64 \[3\] for \[2, 3\]: override ent",
        ),
        (torch.zeros(2, 3), torch.zeros(2, 3), r"got torch.float32 \[2, 3\] for \[2, 3\]: override entry_losses"),
        (torch.zeros(2, 3), torch.tensor([0, 3]), r"labels are below 3, the classes of the model, or -100, got 3"),
    ],
)
def test_labels_that_do_not_fit_are_one_line(logits, labels, message):
    with pytest.raises(UserError, match=message) as error:
        losses_of_logits(logits, labels)
    assert "\n" not in str(error.value)
