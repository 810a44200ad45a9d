"""What the documentation names is there."""

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])

pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="only a checkout has the tree")


def names_of_tests() -> set[str]:
    bodies = [ast.parse(path.read_text()).body for path in (ROOT / "tests").rglob("test_*.py")]
    return {node.name for body in bodies for node in body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_that_is_named_exists(page):
    text = page.read_text()
    files = {path.name for path in (ROOT / "tests").rglob("*.py")}
    assert not set(re.findall(r"\btest_\w+\.py\b", text)) - files
    named = set(re.findall(r"\btest_\w+\b", text)) - {name.removesuffix(".py") for name in files}
    assert not named - names_of_tests()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_is_linked_exists(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    assert not [link for link in links if "://" not in link and not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_python_example_is_python_and_imports_what_there_is(page):
    for code in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("steering"):
                try:
                    module = importlib.import_module(node.module)
                except ModuleNotFoundError as error:
                    if str(error.name).startswith("steering"):
                        raise
                    continue  # the host of an adapter is not installed
                assert not [name.name for name in node.names if not hasattr(module, name.name)], node.module
