"""steer score: losses in a file that is a reference afterwards, resumed, and lists of samples."""

from typing import Any

import numpy as np
import pytest
import torch
from command_line import steer as typed
from safetensors.torch import load_file

from steering import Losses, Pairs, Steerer, UserError
from steering.references import LossTable
from steering.references.store import ReferenceLosses
from steering.runs import scoring
from steering.runs.scoring import Choice, _samples, run
from steering.task import exchange
from steering.tasks.blobs import Blobs
from steering.tasks.digits import Digits
from steering.tasks.tabular.task import Tabular

BLOBS = Blobs(samples=60)


def values(losses: Any) -> Any:
    return losses.values


@pytest.fixture
def out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "losses.safetensors"


@pytest.fixture
def steer(monkeypatch, capsys):
    return lambda *words: typed(monkeypatch, capsys, *words)


def everything(task):
    return task.load(torch.arange(task.size), torch.Generator())


@pytest.mark.parametrize("suffix", ["parquet", "safetensors"])
def test_a_file_has_every_samples_loss_and_is_a_reference_with_its_provenance(suffix, out):
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    out = out.with_suffix(f".{suffix}")
    run(BLOBS, out, Choice(keep=0.25), batch=16)
    table, expected = LossTable.load(out), values(ReferenceLosses(BLOBS)(everything(BLOBS)))
    torch.testing.assert_close(table.losses(torch.arange(60)), expected)
    assert table.provenance["task"] == repr(BLOBS) and table.provenance["command"].startswith("steer")
    assert len(table.provenance["data_sha256"]) == 64 and "Linear" in table.provenance["reference"]
    with_table = exchange(BLOBS, reference=lambda: str(out), seeded=lambda seed: BLOBS)
    torch.testing.assert_close(values(ReferenceLosses(with_table)(everything(BLOBS))), expected)
    with pytest.raises(UserError, match="these losses are of"):
        table.check(Blobs(samples=60, seed=1))
    chosen = [int(line) for line in out.with_suffix(".chosen.txt").read_text().split()]
    assert chosen == expected.argsort()[:15].sort().values.tolist(), "without a target: of least reference loss"
    assert not out.with_name(f"{out.name}.parts").exists()


def test_weights_are_those_of_the_rule_over_the_targets_losses(out):
    target = LossTable(torch.rand(60)).save(out.with_name("target.safetensors"))
    run(BLOBS, out, Choice(str(target), "kl(temperature=0.5)", "0.5", 0.5))
    columns, losses = load_file(out), LossTable.load(target).values
    expected = Steerer("kl(temperature=0.5)", reference_scale=0.5)(losses, columns["losses"])
    torch.testing.assert_close(columns["weights"], expected.weights)
    best = (losses - 0.5 * columns["losses"]).argsort(descending=True)[:30]
    assert columns["chosen"].nonzero()[:, 0].tolist() == best.sort().values.tolist()


def test_what_was_scored_before_an_interrupt_is_not_scored_again(out, monkeypatch):
    calls = []

    def reference(batch):
        calls.extend(batch.ids.tolist())
        if len(calls) == 48:
            raise UserError("stopped here")
        return batch.ids.float()

    task = exchange(BLOBS, reference=lambda: reference)
    monkeypatch.setattr(scoring, "_fingerprint", lambda _: "the same")
    with pytest.raises(UserError, match="stopped here"):
        run(task, out, Choice(), batch=16)
    assert not out.exists()
    run(task, out, Choice(), batch=16)
    assert sorted(calls[:32] + calls[48:]) == list(range(60)) and LossTable.load(out).values.tolist() == list(range(60))
    (out.with_name(f"{out.name}.parts")).mkdir()
    (out.with_name(f"{out.name}.parts") / "score.json").write_text("{}")
    with pytest.raises(UserError, match="holds parts of another task or reference"):
        run(task, out, Choice(), batch=16)


@pytest.mark.parametrize("suffix", ["parquet", "safetensors"])
def test_tokens_padded_packed_and_pairs_are_scored(suffix, out):
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    out = out.with_suffix(f".{suffix}")

    def padded(batch) -> Any:
        mask = torch.arange(3) <= batch.ids[:, None] % 3
        return Losses((batch.ids[:, None] + torch.arange(3.0)), mask)

    def packed(batch):
        rows, columns = padded(batch).mask.nonzero().unbind(1)
        return Losses(batch.ids[rows] + columns.float(), rows=rows)

    def pairs(batch):
        angle = batch.ids.float() / 60
        left = torch.stack([torch.cos(angle), torch.sin(angle)], 1)
        return Pairs(left, torch.tensor([[1.0, 0.0]]).expand_as(left), scale=10.0)

    for reference in (padded, packed):
        run(exchange(BLOBS, reference=lambda r=reference: r), out, Choice(keep=0.1), batch=16)
        losses: Any = LossTable.load(out).look_up(torch.tensor([5, 3]))
        values = losses.values if losses.mask is None else losses.values[losses.mask]
        assert values.tolist() == [5, 6, 7, 3]
        assert out.with_suffix(".chosen.txt").read_text().split() == ["0", "1", "2", "3", "4", "5"]
    run(exchange(BLOBS, reference=lambda: pairs), out, Choice(), batch=16)
    np.testing.assert_allclose(LossTable.load(out).values, 1 - np.cos(np.arange(60) / 60), atol=1e-6)


def test_a_task_without_load_is_read_by_its_stream():
    task = exchange(BLOBS, load=None)
    batches = list(_samples(task, 16))
    ids = torch.cat([batch.ids for batch in batches])
    assert ids.sort().values.tolist() == list(range(60))


@pytest.mark.slow
def test_the_command_scores_a_table_and_its_file_is_the_reference_of_a_run(steer, out):
    pytest.importorskip("pandas")
    code, printed, _ = steer("score", "tabular", "--data", "wine", "--out", "wine.safetensors", "--keep", "0.1")
    assert code == 0 and printed[-1].startswith("losses: 178 samples in wine.safetensors, mean")
    table = LossTable.load("wine.safetensors")
    assert table.provenance["data"] == Tabular("wine").fingerprint and "task" not in table.provenance
    options = "--seeds 1 --steps 2 --out run --ref wine.safetensors".split()
    assert steer("run", "tabular", "--data", "wine", *options)[0] == 0
    code, _, error = steer(
        "run", "tabular", "--data", "iris", *options[:4], "--ref", "wine.safetensors", "--out", "other"
    )
    assert code == 2 and len(error) == 1 and "are of other data" in error[0]
    checkpoint = "run/arms/erm/seed0/checkpoint.pt"
    line = ["score", "tabular", "--data", "wine", "--ref", "wine.safetensors", "--target", checkpoint]
    assert steer(*line, "--rule", "cvar(alpha=0.5)", "--out", "weights.safetensors")[0] == 0
    assert float(load_file("weights.safetensors")["weights"].mean()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "choice", "words"),
    [
        ("x.csv", Choice(), "--out is a file .parquet or .safetensors, got x.csv"),
        ("x.safetensors", Choice(rule="kl(temperature=1)"), "give the target's losses"),
        ("x.safetensors", Choice(keep=2), "above 0 and up to 1, got 2"),
        ("x.safetensors", Choice(scale="half"), "auto or a number, got 'half'"),
        ("x.safetensors", Choice(target="none.pt"), "no checkpoint at none.pt"),
        ("x.safetensors", Choice(target="none.npz"), "none.npz cannot be read as losses"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(name, choice, words, out):
    with pytest.raises(UserError, match=words):
        run(Digits(), scoring.Path(name), choice)
    assert not list(out.parent.iterdir())
