"""Ten thousand configurations that nobody would write: each is read, or refused in one line, at once."""

import time
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steering import UserError
from steering.errors import clean
from steering.runs import config as configs
from steering.runs.config import RunConfig
from steering.settings import Arm, Recipe

KEYS = [*RunConfig.model_fields, *Recipe.model_fields, *Arm.model_fields, "erm", "kl", "rate", "samples", "noise"]
NASTY = [
    "${a}",
    "${",
    "${oc.env:HOME}",
    "${..recipe}",
    "kl(rho=",
    "kl(rho=80)",
    "os:system",
    "groups(x",
    "pipe:x",
    "&a",
    "*a",
]
NASTY += [
    "!!set",
    "<<",
    "---",
    "\ud800",
    "\0",
    "\x1b",
    "~",
    "1e999",
    "0x",
    ".nan",
    "1:1:1",
    "=",
    "a.b",
    "[",
    "2020-01-01",
    "auto",
]
WORDS = st.sampled_from([*KEYS, *NASTY, "digits", "blobs", "clip", "digits(noise=0.1)", "uniform", "top_k"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(max_size=8)
SCALARS |= st.sampled_from([10**18, -1, 0, 1, 2**70, 10**4000, "x" * 5000])
TREES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4))
ARMS = st.dictionaries(
    WORDS | st.text(max_size=3), st.dictionaries(st.sampled_from(list(Arm.model_fields)), TREES, max_size=3)
)
RECIPES = st.dictionaries(st.sampled_from(list(Recipe.model_fields)), TREES | ARMS, max_size=4)
CONFIGS = st.dictionaries(st.sampled_from(list(RunConfig.model_fields)), TREES | RECIPES, max_size=4) | TREES
TEXTS = st.lists(
    st.sampled_from([*KEYS, *NASTY, ": ", "\n", "  ", "- ", "{", "}", ",", '"', "1", "#", "? ", "| "]), max_size=25
)


def outcome(text: str, path: Path) -> str:
    path.write_bytes(text.encode(errors="surrogatepass"))
    began = time.monotonic()
    try:
        config, _ = configs.resolve("digits", file=path)
        configs.choose_arms(config, "all", {})
        assert configs.load(path) is not None or config
        said = ""
    except UserError as error:
        said = str(error)
    assert "\n" not in said and len(said) < 1100 and said == clean(said), said
    assert time.monotonic() - began < 20, text
    return said


def check(text: str, folder: Path) -> None:
    """A configuration that is accepted is also written down and read again as the same."""
    if outcome(text, folder / "a.yaml") == "":
        config, _ = configs.resolve("digits", file=folder / "a.yaml")
        (folder / "b.yaml").write_text(configs.text(config))
        assert not configs.differences(configs.load(folder / "b.yaml"), config)


FUZZ = {"max_examples": 5000, "suppress_health_check": list(HealthCheck), "derandomize": True, "deadline": None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.slow
@pytest.mark.timeout(3000)
@settings(**FUZZ)
@given(CONFIGS)
def test_any_tree_is_a_configuration_or_a_line(folder, tree):
    try:
        text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    except (ValueError, yaml.YAMLError):  # integers that YAML cannot write either
        return
    check(text, folder)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@settings(**FUZZ)
@given(TEXTS)
def test_any_text_is_a_configuration_or_a_line(folder, words):
    check("".join(words), folder)
