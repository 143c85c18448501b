"""pyproject.toml, constraints.txt and environment.yml say the same."""
import ast
import re
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
DIRECT = {r.name: r for r in map(Requirement, [*PROJECT["dependencies"], *(d for e in EXTRAS.values() for d in e)])
          if r.name != PROJECT["name"]}
PINS = {r.name: r for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line.strip() and not line.startswith("#") for r in [Requirement(line)]}


def test_every_direct_dependency_is_pinned_within_its_range():
    assert DIRECT.keys() - PINS.keys() == set()
    for name, requirement in DIRECT.items():
        pin = re.fullmatch(r"==([\w.]+)", str(PINS[name].specifier))
        assert pin, f"{name} is not pinned to one version"
        assert requirement.specifier.contains(pin[1]), f"{PINS[name]} is outside of {requirement}"


def test_everything_that_is_imported_is_declared():
    imported = {}
    for path in [p for folder in ("course", "autograder", "solutions") for p in (ROOT / folder).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else \
                [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            imported |= {name.split(".")[0]: path.relative_to(ROOT).as_posix() for name in names}
    ours, providers = {"course", "autograder", "__future__"}, packages_distributions()
    ours |= {path.stem for path in (ROOT / "solutions").rglob("*.py")}  # a script imports another beside it
    assert "torch" in imported
    missing = {module: imported[module] for module in imported.keys() - ours - sys.stdlib_module_names
               if not {name.lower().replace("_", "-") for name in providers.get(module, [module])} & DIRECT.keys()}
    assert not missing


def test_nothing_else_is_pinned():
    assert PINS.keys() - DIRECT.keys() == set()


@pytest.mark.parametrize("requirements", [DIRECT, PINS], ids=["pyproject.toml", "constraints.txt"])
def test_triton_is_for_linux_only(requirements):
    marker = requirements["triton"].marker
    assert [marker.evaluate({"sys_platform": system}) for system in ("linux", "darwin", "win32")] == [True, False, False]


def test_ranges_admit_colabs_own_torch():
    assert all(DIRECT["torch"].specifier.contains(version) for version in ("2.6.0", "2.8.0+cu126", "2.14.1"))


def test_the_conda_environment_is_python_and_the_project_with_all_its_extras():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert environment["name"] == PROJECT["name"]
    assert [line.split(">")[0] for line in conda] == ["python", "pip"]
    assert SpecifierSet(conda[0].removeprefix("python")) == SpecifierSet(PROJECT["requires-python"])
    assert pip == {"pip": ["-c constraints.txt", "-e .[dev]"]}
    assert f"{PROJECT['name']}[lab]" in EXTRAS["dev"]


def test_the_wheel_carries_the_visible_tests_of_each_lab_and_no_solution(tmp_path):
    """On Colab a notebook stands alone, and finds its tests in the installed package."""
    wheel = next(WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"]))
    names = zipfile.ZipFile(wheel).namelist()
    labs = [path for path in (ROOT / "labs").iterdir() if path.name[:2].isdigit()]
    assert labs
    for lab in labs:
        assert f"course/_labs/{lab.name}/test_visible.py" in names
    assert not [name for name in names if "solutions" in name or "test_hidden" in name or "mistakes" in name]
    assert "course/syllabus.toml" in names and "course/check.py" in names


def test_the_project_builds_while_no_lab_is_built_yet(tmp_path):
    (tmp_path / "labs").mkdir()
    for name in ("course", "autograder"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    for name in ("pyproject.toml", "README.md"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    wheel = next(WheelBuilder(str(tmp_path)).build(directory=str(tmp_path / "dist"), versions=["standard"]))
    assert "course/__init__.py" in zipfile.ZipFile(wheel).namelist()
