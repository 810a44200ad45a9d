"""Names to plugins and back; what a user types wrong is told in one line."""

import re
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steering import KL, CVaR, UserError, registry


@dataclass(frozen=True)
class Halves:
    """Weighs every sample one half.

    More is not to be said.
    """

    share: float = 0.5
    width = 1
    normalised = False

    def __post_init__(self):
        if self.share < 0:
            raise ValueError(f"a share of at least 0, got {self.share}")

    def dual(self, excess, mask, population=None):
        return excess.new_zeros(len(excess), 1)

    def blend(self, old, new, rate):
        return new

    def weights(self, excess, dual):
        return excess.new_full(excess.shape, self.share)


class Plain(Halves):
    """A rule whose constructor nobody annotated."""

    def __init__(self, share=0.5):
        object.__setattr__(self, "share", float(share))


@dataclass
class Odd:
    """Has a field of a type that has no rules of its own."""

    task: re.Pattern | None = None
    other: "Unknowable | None" = None
    width = normalised = dual = blend = weights = 1


class Unknowable:
    pass


HERE = __name__


def refusal(text: str, kind: Any = "rules", **options) -> str:
    with pytest.raises(UserError) as caught:
        registry.build(kind, text, options)
    return str(caught.value)


# ---------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize(
    "text, expected",
    [
        ("kl", ("kl", {})),
        ("kl()", ("kl", {})),
        (" kl (rho=80) ", ("kl", {"rho": 80})),
        (
            "a.b:C(x=-1.5, y='(', z=[1, None], w={'k': True},)",
            ("a.b:C", dict(x=-1.5, y="(", z=[1, None], w={"k": True})),
        ),
    ],
)
def test_a_constructor_call_is_a_name_and_plain_values(text, expected):
    assert registry.parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "kl(",
        "kl(80)",
        "kl(rho=80).dual",
        "kl(rho=80) + 1",
        "kl(rho=1, rho=2)",
        "kl(**{'rho': 80})",
        "kl(*[80])",
        "kl(rho=rho)",
        "kl(rho={[]: 1})",
        "kl(rho=__import__('os').getpid())",
        "kl(rho=[1 for _ in 'a'])",
        "kl(\0)",
    ],
)
def test_anything_else_is_refused_and_never_evaluated(text):
    with pytest.raises(UserError, match=r"is no constructor call: write name or name\(argument=value, ...\)"):
        registry.parse(text)


@given(st.text(alphabet="kl(rho=80)'\"[]{},:*+-. \n#\\_f1", max_size=20))
def test_no_text_at_all_breaks_the_reader(text):
    try:
        name, arguments = registry.parse(text)
    except UserError:
        return
    assert isinstance(name, str) and all(isinstance(key, str) for key in arguments)


@given(st.dictionaries(st.sampled_from(["a", "b_1", "c"]), st.none() | st.booleans() | st.integers() | st.text()))
def test_what_is_written_as_a_call_is_read_back(arguments):
    text = f"kl({', '.join(f'{name}={value!r}' for name, value in arguments.items())})"
    assert registry.parse(text) == ("kl", arguments)


@pytest.mark.parametrize("rule", [KL(rho=80), KL(temperature=0.5, epsilon=0.1), CVaR(alpha=0.3)])
def test_the_repr_of_a_rule_builds_it_again(rule):
    """KL(temperature=None, rho=80.0, epsilon=0.0) with its module in front is a constructor call."""
    assert registry.build("rules", f"steering:{rule!r}") == rule


# --------------------------------------------------------------------------------------------- building


def test_arguments_get_the_type_that_the_dataclass_asks_for():
    rule = registry.build("rules", "kl(rho='80')")
    assert rule == KL(rho=80.0) and isinstance(rule.rho, float)


def test_options_win_over_the_arguments_in_the_text():
    assert registry.build("rules", "kl(rho=80)", {"rho": 5}) == KL(rho=5)


def test_a_rule_of_ones_own_is_named_by_its_module():
    assert registry.build("rules", f"{HERE}:Halves(share=0.25)") == Halves(0.25)
    assert registry.build("rules", f"{HERE}:Plain(share=2)").share == 2.0
    assert registry.build("rules", f"{HERE}:Odd()") == Odd()


def test_a_module_in_the_working_directory_needs_no_installing(tmp_path, monkeypatch):
    (tmp_path / "kitchen_table.py").write_text(f"from {HERE} import Halves as Rule\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [entry for entry in __import__("sys").path if entry])
    assert registry.build("rules", "kitchen_table:Rule") == Halves()


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "klx",
            "no rule is named 'klx'; did you mean kl? Known: auto, chi_square, cvar, global_contrastive, individual, "
            "info_nce, kl, uniform; one of your own",
        ),
        ("zzz", "no rule is named 'zzz'. Known: auto, chi_square"),
        ("", "no rule is named ''. Known"),
        ("rule", "no rule is named 'rule'"),
        ("solve", "no rule is named 'solve'"),
        ("kl(tempratur=1)", "kl has no tempratur; did you mean temperature? It takes temperature, rho, epsilon"),
        ("uniform(a=1)", "uniform has no a. It takes no arguments"),
        ("kl(rho='x')", "kl: rho: input should be a valid number, unable to parse string as a number, got 'x'"),
        ("kl(rho=-1)", "kl needs a rho above 0, got -1"),
        ("kl", "kl takes either a temperature (penalised) or rho (radius rho / n), got neither"),
        (f"{HERE}:Halves(share=-1)", "a share of at least 0, got -1.0"),
        (f"{HERE}:Plain(share='x')", f"{HERE}:Plain: could not convert string to float: 'x'"),
        (f"{HERE}:Unknowable", f"{HERE}:Unknowable is no rule: it has no dual, blend, weights. Name a class"),
        (f"{HERE}:Nobody", f"{HERE}:Nobody: {HERE} has no Nobody to use as a rule"),
        (f"{HERE}:HERE", f"{HERE}:HERE: {HERE} has no HERE to use as a rule"),
        ("nowhere_at_all:X", "nowhere_at_all:X: cannot import nowhere_at_all; is it installed, or in this folder?"),
        (":X", "':X' is no rule: one of your own is named as package.module:Name"),
        ("..x:Y", "'..x:Y' is no rule"),
        ("a:b:c", "'a:b:c' is no rule"),
    ],
)
def test_a_mistake_is_told_in_one_line(text, message):
    told = refusal(text)
    assert told.startswith(message) and "\n" not in told


def test_a_missing_argument_is_named():
    assert refusal("digist", "tasks").startswith("no task is named 'digist'; did you mean digits?")
    assert refusal(f"{HERE}:Needy", "rules") == f"{HERE}:Needy: share: field required"


@dataclass
class Needy:
    share: float
    dual = blend = weights = width = normalised = 1


@pytest.mark.parametrize(
    "code, reason", [("1 / 0", "ZeroDivisionError"), ("def", "SyntaxError"), ("import nil", "nil")]
)
def test_a_plugin_that_cannot_be_imported_is_told_in_one_line(tmp_path, monkeypatch, code, reason):
    (tmp_path / f"broken_{reason}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    told = refusal(f"broken_{reason}:X")
    assert told.startswith(f"broken_{reason}:X: cannot") and reason in told and "\n" not in told


# ---------------------------------------------------------------------------------------------- listing


def test_protocols_and_helpers_are_no_plugins():
    rules = ["auto", "chi_square", "cvar", "global_contrastive", "individual", "info_nce", "kl", "uniform"]
    assert registry.names("rules") == rules
    assert not {"selector", "_choose"} & set(registry.names("selectors"))
    assert {"digits", "clip"} <= set(registry.names("tasks"))


@pytest.mark.parametrize("kind", ["rules", "selectors"])
def test_every_plugin_of_ours_says_what_it_is_in_one_line(kind):
    for name in registry.names(kind):
        assert registry.summary(kind, name).endswith("."), name


def test_a_plugin_that_cannot_be_loaded_does_not_hide_the_others():
    assert registry.summary("rules", "nowhere_at_all:X").startswith("nowhere_at_all:X: cannot import")
    assert registry.summary("rules", f"{HERE}:Halves") == "Weighs every sample one half."
