"""The command line: mistakes, exit statuses, folders, completion, and what it does not import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from dictlearn import config
from tests.command_line import Command, Runs, answer

ROOT = Path(__file__).parents[1]
SLOW = {"torch", "lightning", "transformers", "datasets", "wandb", "matplotlib"}


MISTAKES = {
    "optm.lr=1": "optm.lr=1: no such key; did you mean optim.lr?",
    "lr=1": "lr=1: no such key; did you mean optim.lr?",
    "zzzzz=1": "zzzzz=1: no such key\n",
    "trainer.max_steps=1": "trainer.max_steps=1: no such key; did you mean steps?",
    "tokens=1e6": "tokens=1e6: no such key; did you mean steps or data.max_tokens?",
    "batch_size=8": "batch_size=8: no such key; did you mean batch_tokens?",
    "data.paths=a.txt": "data.paths=a.txt: no such key here; data=chat or data=text has it",
    "dict=clt dict.layer=2": "dict.layer=2: no such key; did you mean dict.layers?",
    "sparsity.bandwidth=1": "no such key here; sparsity=jumprelu or sparsity=jumprelu_tanh has it",
    "run=runs/a": "no such key; train takes the keys of a training run, where resume=<run> goes on",
    "vector=a.npy": "vector=a.npy: no such key of train; vector= is a key of lookup",
    "optim.lr=1e999": "optim.lr=1e999: want a number of at least 0",
    "~optim.lrr": "~optim.lrr: no such key; did you mean optim.lr?",
    "dcit=sae": "dcit=sae: no such key; did you mean dict?",
    "dict=saee": "did you mean sae?",
    "model=qwen3_4": "did you mean qwen3_4b?",
    "teacher=qwen3_4": "did you mean qwen3_4b?",
    "steps=many": "steps=many: want a whole number of at least 1",
    "dict=sae,transcoder": "several values want -m",
    "steps=[1": "want key=value",
    "steps": "want key=value",
    "model=hf": "model.path: no value was given; pass model.path=<value>",
    "dict.k=null": "dict.k=null: want a number above 0",
    "optim.lr=null": "optim.lr=null: want a number of at least 0",
    "dict.layer=???": "dict.layer: no value was given; pass dict.layer=<value>",
    "dict.k=2.5": "dict.k=2.5: sparsity.k, which takes its value, wants a whole number of at least 1",
    "dict.layer=[0,1]": "dict.layer=[0,1]: want a whole number of at least 0, or null",
    "optim=null": "optim=null: choose from adam, ",
    "dict=[sae]": "dict=[sae]: want one option; choose from clt, ",
    "~steps": "~steps: a key can't be left out; set it to a whole number of at least 1",
    "dict._target_=os.system": "what a yaml builds is not set on the command line",
    "+dict.depth=3": "dict.depth: dictlearn.dicts.sae.sae takes no such argument",
    "model=pico,org/name": "use model=hf model.path=pico,org/name",
}


@pytest.mark.parametrize(("override", "sentence"), MISTAKES.items(), ids=MISTAKES.keys())
def test_a_mistake_is_one_sentence(
    override: str,
    sentence: str,
    command: Command,
    runs: Runs,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    assert command("train", *override.split()) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert not runs
    assert not list(tmp_path.iterdir())


def test_another_verbs_group_is_named(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("evaluate", "debug=fast") == 2
    assert capsys.readouterr().err == (
        "debug=fast: no such key of evaluate; debug= is a group of plan, train\n"
    )
    assert command("evaluate", "dict.k=4") == 2
    assert "dict= is a group of plan, train" in capsys.readouterr().err
    assert command("plan", "run=runs/a") == 2
    assert "plan takes the keys of a training run" in capsys.readouterr().err


def test_a_key_may_be_that_of_the_run_to_go_on_with(
    command: Command, runs: Runs, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("words")
    was = config.compose("train", ["data=text", "data.paths=notes.txt", "dict=transcoder"])
    for step in (900, 1000):  # the older one is of another run's text
        folder = tmp_path / f"runs/first/checkpoints/step-{step}"
        folder.mkdir(parents=True)
        tree = OmegaConf.to_container(was, resolve=True) if step == 1000 else {"data": {}}
        (folder / "config.json").write_text(json.dumps(tree))
    for resume in (["resume=auto", "name=first"], ["resume=runs/first"]):
        assert command("train", *resume, "data.paths=[notes.txt]") == 0
        assert runs[-1].data.paths == ["notes.txt"]
    assert command("train", "resume=auto", "name=other", "data.paths=[notes.txt]") == 2
    assert "data=chat or data=text has it" in capsys.readouterr().err


def test_null_is_taken_where_the_yaml_speaks_of_it(command: Command, runs: Runs) -> None:
    nulls = ["clip_norm", "callbacks.checkpoint.every_steps", "dict.layer", "dead_after"]
    assert command("train", *(f"{key}=null" for key in nulls)) == 0
    (cfg,) = runs
    assert [OmegaConf.select(cfg, key) for key in nulls] == [None] * 4


def test_a_misspelt_verb_names_the_nearest(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("trian", "seed=1") == 2
    assert "did you mean train?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (ValueError("dict.k=9: want less"), 2, "dict.k=9: want less\n"),
        (OSError("the disk is full"), 2, "the disk is full\n"),
        (FileNotFoundError(2, "No such file", "a/b.txt"), 2, "a/b.txt: it is not there\n"),
        (OSError(5, "Input/output error", "a"), 2, "a: input/output error\n"),
    ],
    ids=["mistake", "disk", "absent", "broken"],
)
def test_what_a_verb_raises(
    error: BaseException,
    status: int,
    sentence: str,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def main(cfg: DictConfig) -> int:
        raise error

    answer(monkeypatch, main)
    assert command("train") == status
    assert capsys.readouterr().err == sentence


def test_a_mistake_inside_instantiate_is_the_sentence_alone(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(cfg: DictConfig) -> int:
        raise InstantiationException("Error in call to target") from ValueError("k=9: want less")

    answer(monkeypatch, main)
    assert command("train") == 2
    assert capsys.readouterr().err == "k=9: want less\n"


def test_debugging_shows_where_it_was_raised(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def main(cfg: DictConfig) -> int:
        raise ValueError("dict.k=9: want less")

    answer(monkeypatch, main)
    monkeypatch.setenv("DICTLEARN_DEBUG", "1")
    with pytest.raises(ValueError, match="want less"):
        command("train")


@pytest.mark.parametrize("status", [0, 1, 130, 143])
def test_a_verbs_status_is_the_commands(
    status: int, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(monkeypatch, lambda cfg: status)
    assert command("train") == status


def test_two_runs_never_share_a_folder(command: Command, runs: Runs) -> None:
    for _ in range(2):
        assert command("train") == 0
    assert runs[0].run_dir != runs[1].run_dir
    assert runs[0].name.startswith("sae-pico-")


def test_a_run_leaves_nothing_but_what_its_verb_writes(
    command: Command, runs: Runs, tmp_path: Path
) -> None:
    assert command("train", "name=one") == 0
    assert runs[0].run_dir == "runs/one"
    assert "hydra" not in runs[0]
    assert not list(tmp_path.iterdir())


def test_a_folder_of_a_multirun_is_named_without_quotes(
    command: Command, runs: Runs, tmp_path: Path
) -> None:
    folder = tmp_path / "runs/mine/dict.k=8,optim.lr=0.1"
    folder.mkdir(parents=True)
    assert command("train", "name=mine/dict.k=8,optim.lr=0.1", f"init={folder}") == 0
    assert runs[0].run_dir == "runs/mine/dict.k=8,optim.lr=0.1" and runs[0].init == str(folder)


def test_folders_need_no_key_where_a_verb_takes_a_list_of_them(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []
    verb = ModuleType("dictlearn.verbs.compare")
    verb.main = lambda cfg: seen.append(cfg) or 0  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, verb.__name__, verb)
    assert command("compare", "runs/a", "output=x", "runs/m/dict.k=8,optim.lr=0.1", "b c") == 0
    assert list(seen[0].runs) == ["runs/a", "runs/m/dict.k=8,optim.lr=0.1", "b c"]
    assert seen[0].output == "x"
    assert command("compare", "runs=[a,b]") == 0
    assert list(seen[1].runs) == ["a", "b"]
    assert command("compare", "a", "runs=[b]") == 2
    assert "name all folders without a key" in capsys.readouterr().err
    assert command("compare", "a", "outptu=x") == 2
    assert "did you mean output?" in capsys.readouterr().err


def test_lightnings_other_processes_get_this_run_alone(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning starts them from sys.argv: they must find the same folder, in a multirun too."""
    lines = []
    answer(monkeypatch, lambda cfg: lines.append((sys.argv[1:], cfg.name)) or 0)
    assert command("train", "seed=3") == 0
    assert command("train", "-m", "seed=1,2", "name=both") == 0
    assert lines[0][0] == ["train", "seed=3", f"name={lines[0][1]}"]
    assert [line for line, _ in lines[1:]] == [
        ["train", "seed=1", "name='both/seed=1'"],
        ["train", "seed=2", "name='both/seed=2'"],
    ]


def test_lightnings_other_processes_are_understood(command: Command, runs: Runs) -> None:
    """What lightning.fabric's launcher of subprocesses adds to the line above."""
    added = ['hydra.run.dir="."', "hydra.job.name=train_ddp_process_1", "hydra.output_subdir=null"]
    assert command("train", "name=one", *added) == 0
    assert runs[0].run_dir == "runs/one"


def test_processes_started_apart_must_be_given_a_name(
    command: Command,
    runs: Runs,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert command("train") == 2
    assert "pass name=" in capsys.readouterr().err
    assert command("train", "name=same") == 0


TRANSLATIONS = {
    "model=Qwen/Qwen3-0.6B": ["model=hf", "model.path=Qwen/Qwen3-0.6B"],
    "model=./my model's": ["model=hf", r"model.path='./my model\'s'"],
    "model=distilgpt2": ["model=hf", "model.path=distilgpt2"],
    "model=gpt2": ["model=gpt2"],
    "teacher=self": ["teacher=self"],
    "teacher=qwen3_4b": ["teacher=model", "teacher.path=Qwen/Qwen3-4B"],
    "teacher=org/name": ["teacher=model", "teacher.path=org/name"],
    "resume=None": ["resume=null"],
    "data.paths=données.txt": ["data.paths='données.txt'"],
    "model=./modèle": ["model=hf", "model.path='./modèle'"],
    "debug=null": ["~debug"],
}


@pytest.mark.parametrize(("typed", "meant"), TRANSLATIONS.items(), ids=TRANSLATIONS.keys())
def test_translation(typed: str, meant: list[str]) -> None:
    assert config.translated([typed]) == meant


def test_a_path_with_a_quote_comes_through(command: Command, runs: Runs) -> None:
    Path("my model's").mkdir()
    Path("my model's", "config.json").write_text("{}")
    assert command("train", "model=./my model's") == 0
    assert runs[0].model.path == "./my model's"
    assert command("train", "steps=1e4", "trainer.devices=auto") == 0
    assert (runs[1].steps, runs[1].trainer.devices) == (10_000, "auto")


# --- the real commands ------------------------------------------------------------------------


def installed(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from dictlearn.cli import main; main()", *args]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )


QUICK = {
    "--help": 0,
    "train --help all": 0,
    "train --cfg job": 0,
    "-sc query=bash": 0,
    "train optm.lr=1": 2,
    "train dict.n_features=abc": 2,
    "train seed=1.5": 2,
    "train resume=absent": 2,
    "train init=absent": 2,
    "train data=text data.paths=absent.txt": 2,
    "features run=absent": 2,
}


@pytest.mark.parametrize("line", QUICK)
def test_it_answers_before_anything_slow_is_imported(line: str) -> None:
    args = line.split()
    code = (
        "import sys, atexit; from dictlearn.cli import main;"
        "atexit.register(lambda: sys.stderr.write('\\n' + ' '.join(sys.modules)));"
        f"sys.argv[1:] = {args!r}; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "COMP_LINE": "dictlearn train dict="},
        capture_output=True,
        text=True,
    )
    *said, modules = done.stderr.split("\n")
    assert done.returncode == QUICK[line]
    assert done.stdout.strip() or len([one for one in said if one]) == 1
    assert "hydra" in modules.split()
    assert not SLOW & set(modules.split())


COMPLETIONS = {
    "dictlearn ": "train",
    "dictlearn pl": "plan",
    "dictlearn train dict=": "dict=sae",
    "dictlearn train model=org/name dict=tra": "dict=transcoder",
    "dictlearn train optim.l": "optim.lr=",
    "dictlearn plan spars": "sparsity=",
}


@pytest.mark.parametrize(("line", "choice"), COMPLETIONS.items(), ids=COMPLETIONS.keys())
def test_completion(line: str, choice: str) -> None:
    answered = installed("-sc", "query=bash", COMP_LINE=line).stdout.split()
    assert choice in answered
    assert all(word.startswith(line.split(" ")[-1]) for word in answered)


@pytest.mark.parametrize("script", [True, False], ids=["train.py", "dictlearn"])
def test_bash_completes(script: bool, tmp_path: Path) -> None:
    """In a real bash: install the completion, type a line, press tab."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, start in (
        ("dictlearn", "-c 'from dictlearn.cli import main; main()'"),
        ("python", ""),
    ):
        (folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {start} "$@"\n')
        (folder / name).chmod(0o755)
    line = "python train.py dict=tra" if script else "dictlearn train dict=tra"
    # `python -c` sees itself as "-c"; the console script sees its own name.
    install = "python train.py" if script else "dictlearn"
    typed = f"""
        eval "$({install} -sc install=bash | sed 's/ -c$/ dictlearn/; s/-p -c /-p dictlearn /')"
        COMP_LINE="{line}" COMP_POINT={len(line)} COMP_CWORD=2
        hydra_bash_completion
        echo "${{COMPREPLY[@]}}"
    """
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", typed], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["dict=transcoder"]


def test_train_py_hides_the_checkouts_folders() -> None:
    """transformers imports a package `kernels`; the folder of that name here must not be it."""
    code = (
        f"import sys, runpy; sys.path.insert(0, {str(ROOT)!r});"
        f"runpy.run_path({str(ROOT / 'train.py')!r}, run_name='imported');"
        f"assert {str(ROOT)!r} not in sys.path; import importlib.util as u;"
        "print(u.find_spec('kernels'))"
    )
    away = {"cwd": "/", "capture_output": True, "text": True, "check": True}
    assert subprocess.run([sys.executable, "-c", code], **away).stdout == "None\n"


NAMES = ["", ".", "..", "../../out", "a/../../b", "/tmp/x", "a/", "a//b", "a\nb", "x" * 201]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_name_that_leaves_runs_is_refused(command: Command, runs: Runs, capsys, name: str):
    for extra in ([], ["-m", "seed=1,2"]):
        assert command("train", f"name='{name}'", *extra) == 2
        said = capsys.readouterr().err
        assert f"name={name!r}: want the name of a folder in runs/" in said
    assert not runs and list(Path().iterdir()) == []


def test_names_of_folders_in_folders_are_fine():
    for name in ("a", "a/b", "seed=1,dict=sae", "x.y", "-"):
        config.check_name(name)


@pytest.mark.parametrize("given", ["train run_dir=", "export output= run=a", "evaluate run="])
def test_a_place_that_is_empty_is_refused(command: Command, runs: Runs, capsys, given: str):
    assert command(*given.split()) == 2
    assert "=: nothing stands after it" in capsys.readouterr().err
    assert not runs and list(Path().iterdir()) == []
