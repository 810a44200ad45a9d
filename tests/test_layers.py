"""Imports point one way, plugin folders stay plain, and files stay short."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {
    "steering": "steering",
    "tasks": "steering.tasks",
    "clip": "steering.clip",
    "theory_checks": "steering.theory_checks",
}

# Every part may import those before it, and itself.
ORDER = [
    [
        "steering.errors",
        "steering.trust",
        "steering.options",
        "steering.settings",
        "steering.atomic_files",
        "steering.registry",
    ],
    ["steering.training.seeds"],
    ["steering.curvature"],
    ["steering.distributed", "steering.heartbeat"],
    ["steering.dual_memory", "steering.running_variance", "steering.rules", "steering.steered", "steering.groups"],
    ["steering.agreement"],
    ["steering.loss_rows", "steering.arrange", "steering.contrastive.pairs"],
    ["steering.selectors", "steering.window"],
    ["steering.contrastive"],
    ["steering.auto.posterior", "steering.auto.pair_posterior", "steering.auto.weights"],
    ["steering.base_weights", "steering.cautions"],
    ["steering.engine"],
    ["steering.distillation"],
    ["steering.task", "steering.training.checkpoint"],
    ["steering.references"],
    ["steering.adapters"],
    ["steering.training"],
    ["steering.auto"],
    ["steering.reports"],
    ["steering.testing", "steering.runs"],
    ["steering.tasks", "steering.clip"],
    ["steering.theory_checks"],
    ["steering.cli", "steering.__main__"],
]
DISTRIBUTIONS = {
    "PIL": "pillow",
    "open_clip": "open_clip_torch",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
    "resvg_py": "resvg-py",
}
APART = [("steering.tasks", "steering.clip"), ("steering.clip", "steering.tasks")]

pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="only a checkout has the tree")


def modules() -> dict[str, Path]:
    """Every module of ours by its import name; links into the plugin folders are not followed twice."""
    found = {}
    for folder, name in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            inner = path.relative_to(ROOT / folder).with_suffix("").parts
            if folder == "steering" and inner[0] in ("tasks", "clip", "theory_checks"):
                continue
            found[".".join((name, *inner)).removesuffix(".__init__")] = path
    return found


def every_import(path: Path) -> set[str]:
    """Names that a module imports, whenever it does."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def imports(path: Path) -> set[str]:
    """Those of ours."""
    return {name for name in every_import(path) if name.partition(".")[0] in ("steering", *FOLDERS)}


def floor(name: str) -> int | None:
    best = max((part for level in ORDER for part in level if f"{name}.".startswith(f"{part}.")), key=len, default=None)
    return next((place for place, level in enumerate(ORDER) if best in level), None)


def test_no_module_imports_one_from_a_higher_floor():
    for name, path in modules().items():
        if name == "steering":
            continue
        for used in imports(path):
            low, high = floor(used), floor(name)
            assert low is None or (high is not None and low <= high), f"{name} imports {used}"


def test_tasks_and_clip_do_not_know_each_other():
    for name, path in modules().items():
        for mine, other in APART:
            if name.startswith(mine):
                assert not [used for used in imports(path) if used.startswith(other)], name


def test_plugin_folders_are_never_imported_bare():
    for name, path in modules().items():
        assert not imports(path) & {"tasks", "clip", "theory_checks"}, name


def test_the_engine_has_no_word_of_any_plugin():
    for name, path in modules().items():
        if not name.startswith(("steering.tasks", "steering.clip", "steering.theory_checks")):
            used = {u for u in imports(path) if u.startswith(("steering.tasks", "steering.clip"))}
            assert not used, f"{name} imports {used}"


def test_plugin_folders_have_no_init_so_that_another_clip_can_be_imported():
    for folder in ("tasks", "clip", "theory_checks"):
        assert not (ROOT / folder / "__init__.py").exists()
        assert (ROOT / "steering" / folder).resolve() == ROOT / folder


def test_no_file_is_longer_than_400_lines():
    for folder in (*FOLDERS, "benchmarks", "scripts", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 400, path


def test_every_package_that_is_imported_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {name: lines for name, lines in project["optional-dependencies"].items() if name not in ("test", "dev")}
    lines = [*project["dependencies"], *(line for lines in extras.values() for line in lines)]
    declared = {re.split(r"[^\w.-]", line)[0] for line in lines}
    used = {name.partition(".")[0] for path in modules().values() for name in every_import(path)}
    used -= sys.stdlib_module_names | {"steering"}
    assert {DISTRIBUTIONS.get(name, name) for name in used} <= declared
