"""What the README and docs/ show works: Python is run, commands are run or composed."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from figures.printed import FENCE, blocks, run_python

import dictlearn
from dictlearn import cli, config, overrides
from dictlearn.lm.load import PICO_PATH
from dictlearn.verbs import build

ROOT = Path(__file__).parents[1]

NUMBER = re.compile(r"[+-]?\d[\d,]*(\.\d+)?")


def like(printed: str) -> str:
    """The words without the numbers: these differ from machine to machine."""
    printed = re.sub(r"/\S*?(?=runs/)", "", printed)
    return re.sub(r"\s+", " ", NUMBER.sub("#", printed)).strip()


def run_command(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", shlex.split(command))
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    assert leaving.value.code == 0, command


def test_the_page_on_python_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    value, shown = None, 0
    for language, said in blocks((ROOT / "docs/python.md").read_text(encoding="utf-8")):
        if language == "python":
            value = run_python(said, names)
        elif language == "text":
            assert like(repr(value)) == like(said)
            shown += 1
        else:
            run_command(said, monkeypatch)
    assert shown == 2
    assert names["x_hat"].shape == names["x"].shape == names["without"].shape
    assert names["pre"].shape == names["dense"].shape
    code, dictionary = names["code"], names["dictionary"]
    assert names["x_hat"].sub(dictionary.decode(code)).abs().max() < 1e-3
    assert not names["without"].equal(names["x_hat"])
    assert "mean ablation" in repr(names["evaluation"])
    assert len(names["table"]) == len(names["features"]) == 3072
    assert "<span" in names["features"][names["strongest"]]._repr_html_()


# --- commands ----------------------------------------------------------------------------------

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
INDENTED = re.compile(r"^ {4}(\S.*)$", re.MULTILINE)
INLINE = re.compile(r"(?<!`)`((?:dictlearn|python|make) [^`]+)`(?!`)")
PLACES = {  # what stands for something of the reader's own
    r"<folder or hub id>": "owner/name",
    r"<a saved dictionary's folder or a hub id>": "owner/name",
    r"<anybody's dictionary>": "owner/name",
    r"<data set>": "owner/name",
    r"<[^>]*>": "something",
}


def commands(page: Path) -> Iterator[str]:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for match in sorted(
        [*INDENTED.finditer(text), *INLINE.finditer(text)], key=lambda m: m.start()
    ):
        command = re.split(r" {2,}#|\s#\s", match[1])[0].strip()
        if command.split()[0] in ("dictlearn", "python", "make"):
            yield command


def test_commands_are_found_on_every_page_that_has_some() -> None:
    found = {page.name: len(list(commands(page))) for page in PAGES}
    assert found["README.md"] > 20 and found["cli.md"] > 15 and found["kinds.md"] > 5
    assert sum(found.values()) > 80


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_can_be_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in commands(page):
        if "[group=option" in command:  # a synopsis
            continue
        for place, value in PLACES.items():
            command = re.sub(place, value, command)
        words = shlex.split(command)
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), (
                command
            )
        elif words[0] == "python" and words[1] != "train.py":
            script = ROOT / words[1]
            options = [word for word in words[2:] if word.startswith("--")]
            assert all(option in script.read_text() for option in options), command
        else:
            composes(words[1] if words[0] == "dictlearn" else "train", words[2:], command)


def composes(verb: str, words: list[str], command: str) -> None:
    """What the command line does before it starts to work. A sentence on why not fails the test."""
    if verb.startswith("-") or words[:1] == ["..."] or verb == "<verb>" or verb == "something":
        return
    assert verb in config.verbs(), command
    if words and words[-1] == "...":
        words = words[:-1]
    for folder in re.findall(r"(?:run|dictionary)=(runs/\S+)", command):
        Path(folder).mkdir(parents=True, exist_ok=True)  # a multirun's, with = and commas
    flags = {word for word in words if word in ("-m", "--help", "--cfg")}
    given = [word for word in words if word not in flags and word != "job"]
    try:
        texts = overrides.checked(
            verb, config.translated(config.listed(verb, given), verb), "-m" in flags
        )
        if "-m" not in flags:
            cfg = config.compose(verb, texts)
            if verb in ("train", "plan"):
                build.check_named_text(cfg)
    except ValueError as error:
        raise AssertionError(f"{command}: {error}") from error


def test_a_command_that_cannot_be_is_noticed() -> None:
    for words in (["model=gpt2"], ["dict=sea"], ["optm.lr=1"], ["dict.k=abc"], ["steps=0"]):
        with pytest.raises(AssertionError):
            composes("train", words, "")


def test_the_readme_names_every_option_of_every_group() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)=` \| (.*) \|$", text, re.MULTILINE))
    groups = set(config.groups("train")) - {"local"}
    assert rows.keys() == groups
    for group in groups:
        missing = [name for name in config.options(group) if f"`{name}`" not in rows[group]]
        assert not missing, (group, missing)


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)|(?:src|srcset)=\"([^\"]+)\"", text)
        for target in (first or second for first, second in targets):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


# --- the first half hour -----------------------------------------------------------------------

SHORTER = {  # what makes the README's commands short enough for a test
    "train": [
        "steps=30",
        "batch_tokens=256",
        "dict.n_features=256",
        "eval_tokens=1024",
        "eval.baselines.fit_tokens=1024",
        "source.buffer_tokens=4096",
        "source.lm_batch_windows=2",
    ],
    "features": ["tokens=4096"],
    "explain": ["tokens=8192", "limit=3", "baseline_features=3", "at_least=2"],
    "evaluate": ["eval_tokens=1024"],
    "export": ["tokens=1024"],
}


def test_the_first_half_hour_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commands in their order, with a text and a model of one's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(PICO_PATH, "my-model")
    for name, modules in {"notes.txt": (ast, shlex), "held_out.txt": (re,)}.items():
        Path(name).write_text("\n".join(inspect.getsource(module) for module in modules) * 2)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition("## The first half hour\n")[2].partition("\n## ")[0]
    verbs, names = [], {}
    for language, said in blocks(section):
        if language == "python":
            value = run_python(said, names)
            assert value.name == "resid_post.1/17" and names["x_hat"].shape == names["x"].shape
            continue
        verb = said.split()[1]
        verbs.append(verb)
        if verb == "plan":
            continue  # answers for this machine
        given = [] if "resume=auto" in said else SHORTER.get(verb, [])  # which is the run's own
        run_command(shlex.join([*shlex.split(said), *given]), monkeypatch)
    assert " ".join(verbs) == "plan train train features explain lookup evaluate compare export"
    assert Path("runs/first/features/index.html").is_file()
    assert Path("runs/first/export/saelens").is_dir() and Path("evaluations/first").is_dir()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_that_is_not_run_is_python_and_names_what_there_is(page: Path) -> None:
    for language, said in blocks(page.read_text(encoding="utf-8")):
        if language != "python":
            continue
        for node in ast.walk(ast.parse(said)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert node.value.id != "dictlearn" or hasattr(dictlearn, node.attr), said
