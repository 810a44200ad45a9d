import pytest

from steering import UserError
from steering.runs.summary import ArmSummary, Result, Summary
from steering.settings import Metric
from steering.theory_checks.scaling.points import ALL, SIX, Point, from_csv, from_runs, named, published, where


def test_the_published_points_are_eleven_a_method_in_the_same_settings():
    points = published()
    settings = [
        {(p.model, p.samples, p.compute) for p in points if p.method == name} for name in ("OpenCLIP", "DRRho-CLIP")
    ]
    assert settings[0] == settings[1] and len(settings[0]) == 11 == len(points) // 2
    point = next(p for p in points if p.model == "ViT-B/16" and p.samples == 1.28e9)
    assert point.compute == pytest.approx(41.09 * 1.28e9) and point.error == pytest.approx(0.325)


def test_the_six_are_the_small_models_without_the_shortest_runs():
    six = [p for p in named(published(), SIX) if p.method == "OpenCLIP"]
    assert {(p.model, p.samples) for p in six} == {
        (model, samples) for model in ("ViT-B/32", "ViT-B/16") for samples in (0.64e9, 1.28e9, 2.56e9)
    }
    assert named(published(), ALL) == published()
    with pytest.raises(UserError, match=r"no subset 'seven'.*published-six and all"):
        named(published(), "seven")


@pytest.mark.parametrize(
    "conditions, kept",
    [
        (["model=ViT-B/32, ViT-L/14"], 14),
        (["samples>=1.28e9"], 10),
        (["samples=6.4e8"], 6),
        (["model=ViT-B/32", "samples<=6.4e8"], 4),
    ],
)
def test_conditions_choose_points_and_must_all_be_met(conditions, kept):
    assert len(where(published(), conditions)) == kept


@pytest.mark.parametrize(
    "condition, message",
    [
        ("size=3", "columns method, compute, error, model, samples, run; got 'size=3'"),
        ("samples>=many", ">= compares numbers"),
        ("model>=3", ">= compares numbers"),
    ],
)
def test_a_condition_that_cannot_be_read_is_explained(condition, message):
    with pytest.raises(UserError, match=message):
        where(published(), [condition])


def test_points_of_one_run_and_of_one_setting_share_a_unit():
    assert Point("a", 1, 1, run="s").unit == Point("b", 2, 1, run="s").unit
    assert Point("a", 1, 1, "m", 5).unit == Point("b", 1, 2, "m", 5).unit != Point("a", 2, 1, "m", 5).unit


def table(tmp_path, text: str):
    path = tmp_path / "points.csv"
    path.write_text(text)
    return path


def test_a_table_becomes_points_with_what_it_names(tmp_path):
    path = table(tmp_path, "method,compute,error,model,run,remark\nerm, 1e3 ,0.5,small,s0,x\nours,2000,0.25,,,\n")
    assert from_csv(path) == [Point("erm", 1e3, 0.5, "small", None, "s0"), Point("ours", 2e3, 0.25)]


@pytest.mark.parametrize(
    "text, message",
    [
        ("method,error\na,1\n", "has no column compute: .* it names method, error"),
        ("method,compute,error\n", "no points below its first line"),
        ("method,compute,error\na,1,0\n", "line 2: error must be a number above 0 for its logarithm, got '0'"),
        ("method,compute,error\na,1,1\na,many,1\n", "line 3: compute must be a number above 0.*'many'"),
        ("method,compute,error\n,1,1\n", "line 2: the method has no name"),
    ],
)
def test_a_faulty_table_is_explained_in_one_line(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as raised:
        from_csv(table(tmp_path, text))
    assert "\n" not in str(raised.value)


def test_a_file_that_is_no_table_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*nowhere\.csv: No such file"):
        from_csv(tmp_path / "nowhere.csv")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00method")
    with pytest.raises(UserError, match="is no CSV file in UTF-8"):
        from_csv(tmp_path / "bytes.csv")


def summary(samples: int, **metric) -> Summary:
    result = Result(seed=3, metrics={"score": 0.8}, samples=samples, cpu_seconds=2.0)
    arms = {
        "erm": ArmSummary(results=[result]),
        "reference": ArmSummary(kind="reference", results=[Result(seed=3, metrics={"score": 0.9})]),
    }
    metrics = {"score": Metric(label="score", **metric)}
    about = {"task": "t", "command": "c", "started": "s", "seconds": 1.0, "baseline": "erm"}
    return Summary(metrics=metrics, arms=arms, **about)


def folder(tmp_path, made: Summary):
    (tmp_path / "summary.json").write_text(made.model_dump_json())
    return tmp_path


def test_a_run_gives_a_point_for_every_trained_arm_and_seed(tmp_path):
    made = folder(tmp_path, summary(640, better="low"))
    assert from_runs([made], "samples", None) == [Point("erm", 640, 0.8, None, 640, "seed 3")]
    assert from_runs([made], "cpu", None)[0].compute == 2


def test_a_share_that_is_better_when_high_counts_as_one_minus_it(tmp_path):
    point = from_runs([folder(tmp_path, summary(640, better="high", percent=True))], "samples", None)[0]
    assert point.error == pytest.approx(0.2)


@pytest.mark.parametrize(
    "made, metric, message",
    [
        (summary(640, better="high", percent=False), None, "score of .* is better when high and no share"),
        (summary(640, better="low"), "loss", "no metric 'loss'; it has score"),
        (summary(0, better="low"), None, "erm, seed 3: samples 0 and error 0.8 must both be above 0"),
    ],
)
def test_a_run_without_an_error_to_fit_is_explained(tmp_path, made, metric, message):
    with pytest.raises(UserError, match=message):
        from_runs([folder(tmp_path, made)], "samples", metric)


def test_a_folder_that_is_no_finished_run_is_named(tmp_path):
    with pytest.raises(UserError, match=r"has no summary\.json"):
        from_runs([tmp_path], "samples", None)
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(UserError, match="is no summary of a run"):
        from_runs([tmp_path], "samples", None)
