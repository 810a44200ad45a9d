"""A name in a file is not a name typed: what others wrote runs no code unless the person typing says so."""

import shutil
import sys
from pathlib import Path

import pytest
from command_line import steer

from steering import UserError, registry, trust
from steering.runs import config as configs

WITNESS = "from pathlib import Path; Path('ran').touch()\n"  # what an import leaves behind


@pytest.fixture(autouse=True)
def no_code(monkeypatch, tmp_path):
    """An empty working folder with a module whose import is seen, and nothing allowed before or after."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("evil_module.py").write_text(WITNESS)
    yield
    trust.allow_code(False)
    sys.modules.pop("evil_module", None)


ARM = "recipe: {{arms: {{a: {{{}}}}}, baseline: a}}"
IN_FILES = [  # settings that would run code, import something, or read what nobody meant to give
    ARM.format("rule: \"subprocess:getoutput(cmd='touch ran')\""),
    ARM.format("rule: 'evil_module:X'"),
    ARM.format("rule: 'steering.trust:allow_code()'"),
    ARM.format("selector: 'os:system'"),
    ARM.format("selector: 'time:sleep(secs=100)'"),
    "recipe: {more: {b: {rule: 'evil_module:X'}}}",
    "task: \"os:system(command='touch ran')\"",
    "task: 'evil_module:Task'",
    "options: {task: 'evil_module:Task'}",
    "device: ${oc.env:HOME}",
    "options: {x: [1, '${oc.decode:${oc.env:HOME}}']}",
    "name: oc\ndevice: '${${name}.env:HOME}'",
    "options: {data: 'pipe:touch ran'}",
    "options: {data: 'a.tar::pipe:touch ran; cat'}",
    "options: {data: {a: [1, '{p,q}ipe:touch ran']}}",
    "options: {data: '{a.tar::,}pipe:touch ran'}",
    "options: {x: 'os:system'}\nrecipe: {arms: {a: {rule: '${options.x}'}}, baseline: a}",
    "a: pi\noptions: {data: '${a}pe:touch ran'}",
]


@pytest.mark.parametrize("text", IN_FILES)
def test_a_file_that_names_code_is_refused_before_anything_is_imported_and_says_the_flag(text, monkeypatch, capsys):
    Path("config.yaml").write_text(text)
    code, _, err = steer(monkeypatch, capsys, "run", "digits", "--config", "config.yaml", "--steps", "1")
    assert (
        code == 2 and len(err) == 1 and "config.yaml names code that would run" in err[0] and "--trust-code" in err[0]
    )
    assert not Path("ran").exists() and "evil_module" not in sys.modules


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A finished run that somebody else could have sent; not to be changed."""
    place = tmp_path_factory.mktemp("sent")
    config, _ = configs.resolve("digits", sets=["recipe.steps=2", "recipe.seeds=1"])
    (place / "config.yaml").write_text(configs.text(configs.choose_arms(config, "erm", {})))
    return place


COMMANDS = [
    ("run", "--config", "sent/config.yaml"),
    ("run", "--resume", "sent"),
    ("run", "--resume", "sent", "--threads", "1"),
    ("variance", "sent"),
    ("tune", "sent"),
    ("bound", "--run", "sent"),
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("key", ["rule", "task"])
def test_no_command_runs_what_a_folder_names(folder, words, key, monkeypatch, capsys):
    shutil.copytree(folder, "sent")
    text = Path("sent/config.yaml").read_text()
    name = {"rule": "rule: uniform", "task": "task: digits"}[key]
    assert name in text
    Path("sent/config.yaml").write_text(text.replace(name, f"{key}: evil_module:X"))
    code, _, err = steer(monkeypatch, capsys, *words)
    assert code == 2 and len(err) == 1 and "names code that would run" in err[0], err
    assert not Path("ran").exists()


def test_what_only_reads_a_folder_builds_no_plugin(folder, monkeypatch, capsys):
    """The same command with another's folder as --out compares settings, and that is all."""
    shutil.copytree(folder, "sent")
    text = Path("sent/config.yaml").read_text()
    Path("sent/config.yaml").write_text(text.replace("rule: uniform", "rule: evil_module:X"))
    assert configs.load(Path("sent/config.yaml")).recipe.arms["erm"].rule == "evil_module:X"
    code, _, err = steer(monkeypatch, capsys, "run", "digits", "--out", "sent")
    assert code == 2 and "holds a run of another configuration" in err[0] and not Path("ran").exists()


def test_with_the_flag_the_same_file_may_name_anything(monkeypatch, capsys):
    Path("config.yaml").write_text(ARM.format("rule: 'evil_module:X'") + "\ndevice: ${oc.env:CHIP}")
    monkeypatch.setenv("CHIP", "cpu")
    code, _, err = steer(monkeypatch, capsys, "run", "digits", "--config", "config.yaml", "--trust-code")
    assert Path("ran").exists() and code == 2 and "evil_module has no X" in err[0]
    assert trust.code_is_allowed()


TYPED = [
    "time:sleep",
    "time:sleep(secs=1000)",
    "os:system",
    "os:system(command='touch ran')",
    "subprocess:getoutput(cmd='touch ran')",
    "subprocess:Popen(args='touch ran', shell=True)",
    'builtins:exec(source=\'open("ran", "w")\')',
    "builtins:object",
    "pathlib:Path",
    "sys:exit",
    "code:interact",
    "steering.trust:allow_code",
    "steering.cli:main",
    "functools:partial",
]


@pytest.mark.parametrize("kind", ["rules", "selectors", "tasks"])
@pytest.mark.parametrize("name", TYPED)
def test_what_is_typed_and_no_plugin_is_not_called(kind, name):
    with pytest.raises(UserError, match=r"is no (rule|selector|task)|takes|functools") as caught:
        registry.build(kind, name)
    assert "\n" not in str(caught.value)
    assert not Path("ran").exists() and not trust.code_is_allowed()


def test_a_function_may_make_a_plugin_if_it_says_so(monkeypatch):
    Path("evil_module.py").write_text(
        "from steering import KL, Rule\n"
        "def rule(rho: float = 3) -> Rule: return KL(rho=rho)\n"
        "def silent(): return KL(rho=1)\n"
    )
    assert registry.build("rules", "evil_module:rule(rho=5)").rho == 5
    with pytest.raises(UserError, match="annotated to return one"):
        registry.build("rules", "evil_module:silent")


def test_what_lies_in_the_working_folder_stands_behind_what_is_installed(monkeypatch):
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    registry.build("rules", "kl(rho=1)")
    assert str(Path.cwd()) not in sys.path
    with pytest.raises(UserError):
        registry.build("rules", "evil_module:X")
    assert sys.path[-1] == str(Path.cwd())


HARMLESS = ["shards/{000..099}.tar::s3://x/pipe{0..3}.tar", "runs/${recipe.steps}: 2", "a:b", "pipeline:x", "{a,b}.tar"]


@pytest.mark.parametrize("text", HARMLESS)
def test_other_settings_with_colons_and_braces_are_left_alone(text):
    trust.refuse_code({"options": {"data": text}}, "file")


def test_a_run_with_code_of_ones_own_is_resumed_by_the_command_that_it_names(monkeypatch, capsys):
    Path("evil_module.py").write_text("from steering import KL as Mine\n")
    words = ["run", "digits", "--rule", "evil_module:Mine(rho=5)", "--steps", "2", "--seeds", "1", "--out", "mine"]
    assert steer(monkeypatch, capsys, *words)[0] == 0
    Path("mine/summary.json").unlink()
    assert "--trust-code" in steer(monkeypatch, capsys, "run", "--resume", "mine")[2][0]
    assert steer(monkeypatch, capsys, "run", "--resume", "mine", "--trust-code")[0] == 0
