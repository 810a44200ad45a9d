"""The command from end to end: what it writes, what it takes up again, and what it says of mistakes."""

import json
import signal
import sys
from pathlib import Path

import pytest
import torch

from steering import cli
from steering.curvature import bridge

pytestmark = pytest.mark.slow


@pytest.fixture
def steer(monkeypatch, capsys, tmp_path):
    """Runs the command in an empty working directory; gives exit code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["steer", "tune", *words])
        with pytest.raises(SystemExit) as left:
            cli.main()
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return call


def test_a_study_of_digits_is_written_in_the_common_form_and_taken_up_again(steer):
    words = "digits", "--quick", "--parts", "bridge", "--out", "out"
    code, out, err = steer(*words)
    assert (code, err) == (0, "") and "bridge: repetition 1" in out
    for name in ("report.html", "report.md", "report.json", "plots/bridge.png"):
        assert Path("out", name).stat().st_size > 0
    told = json.loads(Path("out/report.json").read_text())
    assert told["command"] == "steer tune digits --quick --parts bridge --out out"
    assert [found["betas"] for found in told["numbers"]["bridge"]] == [[1.0, 0.5]] * 2
    Path("out/parts/bridge-1.json").unlink()
    code, out, _ = steer(*words)
    assert code == 0 and "repetition 1" in out and "repetition 0" not in out
    assert json.loads(Path("out/report.json").read_text())["numbers"] == told["numbers"]
    code, _, err = steer(*words, "--betas", "0.9")
    assert code == 2 and "other settings" in err and err.count("\n") == 1


def test_ctrl_c_is_one_line_and_the_same_command_goes_on(steer, monkeypatch):
    words, measure = ("digits", "--quick", "--parts", "bridge", "--out", "out"), bridge.measure

    def interrupted(seed, *rest):
        if seed == 1:
            signal.raise_signal(signal.SIGINT)
        return measure(seed, *rest)

    monkeypatch.setattr(bridge, "measure", interrupted)
    code, _, err = steer(*words)
    assert (code, err) == (130, "steer: stopped; the same command with --out out goes on\n")
    assert not Path("out/report.json").exists()
    monkeypatch.setattr(bridge, "measure", measure)
    code, out, _ = steer(*words)
    assert code == 0 and "repetition 1" in out and "repetition 0" not in out


@pytest.mark.parametrize("part", ["transfer", "noise", "robustness", "boundary"])
def test_every_other_study_runs(steer, part):
    code, _, err = steer("digits", "--quick", "--seeds", "1", "--parts", part, "--out", "out")
    assert (code, err) == (0, "")
    told = json.loads(Path("out/report.json").read_text())
    assert "One repetition, hence no intervals." in Path("out/report.md").read_text()
    compared = {"noise": 2, "robustness": 2}.get(part)
    method = " ".join(told["method"])
    assert f"looks at {compared} comparisons" in method if compared else "Holm" not in method
    assert len(told["numbers"][part]) == 1


def test_a_task_is_searched_with_and_without_its_head_refitted(steer):
    words = "blobs", "--quick", "--set", "recipe.steps=5"
    assert steer(*words, "--out", "plain")[0] == steer(*words, "--refit", "3", "--out", "refit")[0] == 0
    plain, refit = (
        json.loads(Path(name, "report.json").read_text())["numbers"]["search"] for name in ("plain", "refit")
    )
    assert [set(found["rows"]) for found in plain] == [{"trained", "search"}] * 2
    assert [set(found["rows"]) for found in refit] == [{"trained", "refitted", "search"}] * 2
    assert [one["rows"]["trained"] for one in plain] == [one["rows"]["trained"] for one in refit]


def test_a_resnet_from_a_file_is_taught_the_classes_of_a_folder(steer, folder):
    models = pytest.importorskip("torchvision.models")
    torch.save(models.resnet18(weights=None).state_dict(), "resnet18.pt")
    words = "--data", str(folder), "--quick", "--size", "32", "--betas", "0.8", "--device", "cpu", "--out", "out"
    code, out, err = steer("resnet18=resnet18.pt", *words)
    assert (code, err) == (0, "") and "LoRA, rank 1" in out
    (found,) = json.loads(Path("out/report.json").read_text())["numbers"]["pictures"]
    assert found["sizes"] == [8, 4, 4] and len(found["replaced"]) == 17 and found["missed"] == []
    head = 2 * (512 + 1)
    learned = {name: row["parameters"] - head for name, row in found["rows"].items()}
    assert learned["regression"] == 513 - head  # two classes need one score
    assert learned["curvature"] == 2 * sum([64] * 5 + [128] * 4 + [256] * 4 + [512] * 4)
    assert learned["full"] == sum(p.numel() for p in models.resnet18(weights=None, num_classes=2).parameters()) - head


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["digits", "--parts", "trasnfer"], "did you mean transfer?"),
        (["digits", "--betas", "2"], "beta is within 0 and 1, got 2"),
        (["digits", "--refit", "3"], "--refit means nothing for digits"),
        (["blobs", "--parts", "noise"], "--parts means nothing for blobs"),
        (["digits", "--set", "recipe.steps=3"], "--set means nothing for digits"),
        (["nothing"], "no task is named 'nothing'"),
        (["digits(samples=50)"], "no ReLU to replace"),
        (["runs/none"], "no run folder or checkpoint at runs/none"),
        (["resnet18", "--data", "."], "resnet18=weights.pt"),
        (["resnet18=none.pt"], "--data"),
        (["resnet18=none.pt", "--data", "."], "no weights at none.pt"),
        (["resnet18=none.pt", "--data", ".", "--methods", "lora"], "no method is named 'lora'"),
    ],
)
def test_mistakes_are_told_in_one_line_and_leave_nothing_behind(steer, words, told):
    code, _, err = steer(*words)
    assert code == 2 and told in err and err.count("\n") == 1
    assert not list(Path().iterdir())


def test_nothing_is_loaded_to_show_the_help():
    import subprocess

    words = "import sys\nfrom steering.curvature import commands\nassert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", words], check=True)
