"""What a user gets from `pip install`, and what the pages about installing promise."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import dictlearn

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SOURCES = sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")])


def distribution(requirement: str) -> str:
    """`Hydra_Core>=1.3; ...` -> `hydra-core`."""
    name = re.match(r"[\w.-]+", requirement)
    assert name
    return name[0].lower().replace("_", "-")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    unpacked = folder / "site"
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        archive.extractall(unpacked)
    return unpacked


def test_the_wheel_holds_what_runs_need(wheel: Path) -> None:
    found = {str(path.relative_to(wheel)) for path in wheel.rglob("*") if path.is_file()}
    for root, prefix in ((ROOT / "conf", "dictlearn/conf/"), (ROOT / "src", "")):
        wanted = [
            path
            for path in root.rglob("*")
            if path.suffix in (".yaml", ".py", ".html", ".css", ".js")
        ]
        assert {f"{prefix}{path.relative_to(root)}" for path in wanted} <= found
    assert {
        f"dictlearn/lm/pico/{p.name}" for p in (ROOT / "src/dictlearn/lm/pico").iterdir()
    } <= found
    assert "dictlearn/lm/pico/model.safetensors" in found
    assert {"dictlearn/py.typed", "dictlearn_kernels/__init__.py"} <= found


def test_the_wheel_holds_nothing_else(wheel: Path) -> None:
    top = {path.name for path in wheel.iterdir()}
    ours = {"dictlearn", "dictlearn_kernels", "hydra_plugins"}
    assert top == {*ours, f"dictlearn_lm-{PROJECT['version']}.dist-info"}


def test_the_wheel_runs_from_any_folder(wheel: Path, tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(wheel)!r}); import dictlearn.config as c;"
        f"assert str(c.conf_dir()).startswith({str(wheel)!r}), c.conf_dir();"
        "sys.argv[1:] = ['train', '--cfg', 'job', 'dict=transcoder'];"
        "from dictlearn.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert "dictlearn.dicts.transcoder" in done.stdout


def test_one_version() -> None:
    assert PROJECT["version"] == dictlearn.__version__
    assert f"## {dictlearn.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_import_is_a_declared_dependency() -> None:
    imported = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {name.name.split(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.split(".")[0])
    known = packages_distributions()
    own = {"dictlearn", "dictlearn_kernels"}
    third_party = imported - set(sys.stdlib_module_names) - own
    declared = {distribution(text) for text in PROJECT["dependencies"]}
    undeclared = {
        name
        for name in third_party
        if not {d.lower().replace("_", "-") for d in known.get(name, [name])} & declared
    }
    assert not undeclared


def test_every_dependency_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {distribution(line) for line in lines if line and not line.startswith("#")}
    wanted = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]
    assert {distribution(text) for text in wanted} <= pinned


def test_nothing_names_torchvision() -> None:
    """A torchvision that doesn't match torch breaks transformers and lightning for everybody."""
    for file in ("pyproject.toml", "constraints.txt"):
        assert "torchvision" not in (ROOT / file).read_text()


def test_no_package_is_called_kernels() -> None:
    assert not (ROOT / "kernels" / "__init__.py").exists()
    for path in SOURCES:
        assert not re.search(r"^\s*(import|from) kernels\b", path.read_text(), re.MULTILINE)


@pytest.mark.parametrize("target", ["demo", "test", "check"])
def test_make_says_what_it_misses(target: str, tmp_path: Path) -> None:
    """Without a Python that will do: one sentence, not a traceback from pip."""
    for file in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / file).write_text((ROOT / file).read_text())
    done = subprocess.run(["make", target, "PYTHON="], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "Python 3.11, 3.12 or 3.13" in done.stderr
    assert not (tmp_path / ".venv").exists()
