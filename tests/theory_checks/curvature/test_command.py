"""The command from end to end: what it writes, what it takes up again, and what it says of mistakes."""

import json
import signal
import sys
from pathlib import Path

import pytest
import torch

from steering import cli
from steering.theory_checks.curvature import bridge

pytestmark = pytest.mark.slow


@pytest.fixture
def steer(monkeypatch, capsys, tmp_path):
    """Runs the command in an empty working directory; gives exit code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["steer", "tune", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return call


def test_a_study_of_digits_is_written_in_the_common_form_and_taken_up_again(steer):
    arguments = "digits", "--quick", "--parts", "bridge", "--out", "out"
    code, out, err = steer(*arguments)
    assert (code, err) == (0, "") and "bridge: repetition 1" in out
    for name in ("report.html", "report.md", "report.json"):
        assert Path("out", name).stat().st_size > 0
    report = json.loads(Path("out/report.json").read_text())
    assert report["command"] == "steer tune digits --quick --parts bridge --out out"
    assert [result["betas"] for result in report["numbers"]["bridge"]] == [[1.0, 0.5]] * 2
    Path("out/parts/bridge-1.json").unlink()
    code, out, _ = steer(*arguments)
    assert code == 0 and "repetition 1" in out and "repetition 0" not in out
    assert json.loads(Path("out/report.json").read_text())["numbers"] == report["numbers"]
    code, _, err = steer(*arguments, "--betas", "0.9")
    assert code == 2 and "other settings" in err and err.count("\n") == 1
    for content, message in (
        ('{"settings": {}, "found": {}}', "other settings"),
        ('{"settings": {}}', "damaged: delete it"),
    ):
        Path("out/parts/bridge-1.json").write_text(content)
        code, _, err = steer(*arguments)
        assert code == 2 and message in err and err.count("\n") == 1


def test_ctrl_c_is_one_line_and_the_same_command_goes_on(steer, monkeypatch):
    arguments, measure = ("digits", "--quick", "--parts", "bridge", "--out", "out"), bridge.measure

    def interrupted(seed, *rest):
        if seed == 1:
            signal.raise_signal(signal.SIGINT)
        return measure(seed, *rest)

    monkeypatch.setattr(bridge, "measure", interrupted)
    code, _, err = steer(*arguments)
    assert code == 130 and err.startswith("steer: stopped; all that is finished is saved. Go on with: steer tune")
    assert not Path("out/report.json").exists()
    monkeypatch.setattr(bridge, "measure", measure)
    code, out, _ = steer(*arguments)
    assert code == 0 and "repetition 1" in out and "repetition 0" not in out


@pytest.mark.parametrize("part", ["transfer", "noise", "robustness", "boundary"])
def test_every_other_study_runs(steer, part):
    code, _, err = steer("digits", "--quick", "--seeds", "1", "--parts", part, "--out", "out")
    assert (code, err) == (0, "")
    report = json.loads(Path("out/report.json").read_text())
    assert "One repetition, hence no intervals." in Path("out/report.md").read_text()
    compared = {"noise": 2, "robustness": 2}.get(part)
    method = " ".join(report["method"])
    assert f"looks at {compared} comparisons" in method if compared else "Holm" not in method
    assert len(report["numbers"][part]) == 1


def test_a_task_is_searched_with_and_without_its_head_refitted(steer):
    arguments = "blobs", "--quick", "--set", "recipe.steps=5"
    assert steer(*arguments, "--out", "plain")[0] == steer(*arguments, "--refit", "3", "--out", "refit")[0] == 0
    plain, refit = (
        json.loads(Path(name, "report.json").read_text())["numbers"]["search"] for name in ("plain", "refit")
    )
    assert [set(result["rows"]) for result in plain] == [{"trained", "search"}] * 2
    assert [set(result["rows"]) for result in refit] == [{"trained", "refitted", "search"}] * 2
    assert [one["rows"]["trained"] for one in plain] == [one["rows"]["trained"] for one in refit]


def test_a_resnet_from_a_file_learns_the_classes_of_a_folder(steer, folder):
    models = pytest.importorskip("torchvision.models")
    torch.save(models.resnet18(weights=None).state_dict(), "resnet18.pt")
    arguments = "--data", str(folder), "--quick", "--size", "32", "--betas", "0.8", "--device", "cpu", "--out", "out"
    code, out, err = steer("resnet18=resnet18.pt", *arguments)
    assert (code, err) == (0, "") and "full fine-tuning" in out
    (result,) = json.loads(Path("out/report.json").read_text())["numbers"]["pictures"]
    assert result["sizes"] == [8, 4, 4] and len(result["replaced"]) == 17 and result["missed"] == []
    head = 2 * (512 + 1)
    learned = {name: row["parameters"] - head for name, row in result["rows"].items()}
    assert learned["regression"] == 513 - head  # two classes need one score
    assert learned["curvature"] == 2 * sum([64] * 5 + [128] * 4 + [256] * 4 + [512] * 4)
    assert learned["full"] == sum(p.numel() for p in models.resnet18(weights=None, num_classes=2).parameters()) - head


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits", "--parts", "trasnfer"], "did you mean transfer?"),
        (["digits", "--refit", "3"], "--refit means nothing for digits"),
        (["digits", "--set", "recipe.steps=3"], "--set means nothing for digits"),
        (["nothing"], "no task is named 'nothing'"),
        (["runs/none"], "no run folder or checkpoint at runs/none"),
        (["resnet18", "--data", "."], "resnet18=weights.pt"),
        (["resnet18=none.pt"], "--data"),
        (["resnet18=none.pt", "--data", "."], "no weights at none.pt"),
        (["resnet18=none.pt", "--data", ".", "--methods", "lora"], "no method is named 'lora'"),
    ],
)
def test_mistakes_are_named_in_one_line_and_leave_nothing_behind(steer, arguments, message):
    code, _, err = steer(*arguments)
    assert code == 2 and message in err and err.count("\n") == 1
    assert not list(Path().iterdir())


def test_nothing_is_loaded_to_show_the_help():
    import subprocess

    imports = "import sys\nfrom steering.theory_checks.curvature import commands"
    code = f"{imports}\nassert not {{'torch', 'numpy'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
