"""What a run says of effective sample sizes is the same however the same losses are written, padding or none."""

import inspect

import pytest
import torch

from steering import Steerer
from steering.settings import Arm
from steering.task import Losses, exchange

CHANCE = torch.Generator().manual_seed(0)
LOSSES, REFERENCE = 4 * torch.rand(64, generator=CHANCE), torch.rand(64, generator=CHANCE)


def padded(values: torch.Tensor, columns: int, rows: int = 0, fill: float = 0.0) -> torch.Tensor:
    """Lines with more columns, and more lines, in which nothing stands."""
    return torch.nn.functional.pad(values, (0, columns, 0, rows), value=fill)


def written(values: torch.Tensor, form: str) -> tuple[torch.Tensor, dict]:
    """The same 64 losses in some form, and what says so."""
    lines = values.view(8, 8) if "lines" in form else values[:, None]
    if form in ("samples", "lines", "column"):
        return {"samples": values, "lines": lines, "column": lines}[form], {}
    if form == "packed lines":
        return values, {"rows": torch.arange(8).repeat_interleave(8)}
    more = 24 if "rows" in form else 0
    fill = 1e6 if "garbage" in form else 0.0
    return padded(lines, 24, more, fill), {"mask": padded(torch.ones_like(lines), 24, more).bool()}


def figures(form: str, over: str | None = None) -> tuple[list[float], list[str]]:
    steerer = Steerer("kl(temperature=0.2)", over=over)  # type: ignore[arg-type]
    values, options = written(LOSSES, form)
    steerer(values, written(REFERENCE, form)[0], **options)
    return steerer.effective_sample_size.tolist(), steerer.cautions()


@pytest.mark.parametrize("form", ["column", "padded", "padded rows", "padded garbage"])
def test_samples_with_a_column_or_with_padding_are_cautioned_as_plain_ones(form):
    (size, share), cautions = figures(form, over="batch")
    (plain_size, plain_share), plain = figures("samples", over="batch")
    assert size == pytest.approx(plain_size, rel=1e-5) and share == pytest.approx(plain_share, rel=1e-5)
    assert cautions == plain and "rest on 1.7 samples of a row" in plain[0]


def test_a_column_of_losses_is_a_loss_for_each_sample_unless_something_else_is_said():
    assert figures("column") == figures("samples")


@pytest.mark.parametrize("form", ["packed lines", "padded lines", "padded lines rows", "padded lines garbage"])
def test_rows_with_padding_are_cautioned_as_plain_ones(form):
    (size, share), cautions = figures(form)
    (plain_size, plain_share), plain = figures("lines")
    assert size == pytest.approx(plain_size, rel=1e-5) and share == pytest.approx(plain_share, rel=1e-5)
    assert cautions == plain and len(plain) == 2


@pytest.mark.parametrize("form", ["column", "padded"])
def test_the_records_of_a_run_have_the_same_effective_share(make_training, toy, form):
    def losses(model, batch):
        values = toy().losses(model, batch).values[:, None]
        if form == "column":
            return Losses(values)
        return Losses(padded(values, 5), mask=padded(torch.ones_like(values), 5).bool())

    settings = Arm(rule="kl(temperature=0.05)", over="batch").model_dump(exclude_defaults=True)
    plain = make_training(toy(noisy=False), **settings)
    other = make_training(exchange(toy(noisy=False), losses=losses), **settings)
    assert other.step()["effective"] == pytest.approx(plain.step()["effective"], rel=1e-5)
    assert other.steerer.cautions() == plain.steerer.cautions()


def test_no_caution_recommends_the_automatic_scale_which_was_measured_to_harm():
    _, cautions = figures("samples")
    assert any("reference adds noise" in caution for caution in cautions)
    assert not any("auto" in caution for caution in cautions)
    assert '"auto"' not in inspect.getsource(Steerer.cautions) and "'auto'" not in inspect.getsource(Steerer.cautions)
