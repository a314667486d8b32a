"""Every verb over a tree with one damaged file: what is made, what is called, what has to come of it.

`made` fills a folder with a model, text, two runs with checkpoints, features and descriptions, stored
targets, other tools' dictionaries, a graph and vectors. `called` runs a command line in it, in this
process. `judged` compares what came of it with what comes of the whole tree:

- exit status 2: one sentence on stderr, and no half-written file. What the same command says of the
  whole tree (lines alike but for numbers) and notes on what is passed over may stand before it.
- exit status 0: what it prints and writes is what it prints and writes in the whole tree ("right"), or
  stderr names the damaged file, a folder that it is in, or what was left out ("said").
- anything else at status 0 is "changed" where nothing can tell: the file is one whose format has no
  hash (plain text, a model, a graph, descriptions, another tool's dictionary), where a changed number is
  a number like any other, or its hashes were made to fit, as whoever means harm would. Where a manifest
  or a dictionary's own hash covers the file, it is a fault.

Never a traceback, the system's own words for an error, or a sequence that a terminal obeys.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.qwen3 import Qwen3Config

from dictlearn import cli
from dictlearn.lm.hub import PICO_PATH
from tests.damages import DAMAGES, MANIFEST, make_fit

LAYERS, WIDTH = 2, 16
FINE = ("right", "refused", "said", "changed")  # see `judged`
ROOM = 1 << 30  # bytes that a call may take above what the process had
FITS = 0.4  # of the cases in which hashes cover the file
MODEL = ["model=./model"]
TEXT = ["data=text", "data.paths=text.jsonl", "data.context=32", "data.held_out=0.3"]
SMALL = ["steps=4", "batch_tokens=128", "source.buffer_tokens=1024", "source.lm_batch_windows=4"]
SMALL += ["dict.n_features=24", "dict.k=4", "eval_tokens=256", "trainer.log_every_n_steps=1"]
SMALL += ["eval.baselines.fit_tokens=256", "trainer=cpu", "callbacks.checkpoint.every_steps=2"]
TRAIN = ["train", *MODEL, *TEXT, *SMALL]
FEATURES = ["tokens=1000", "batch_windows=4", "block=16", "before=4", "after=3", "examples=4"]
EXPLAIN = ["tokens=1000", "windows=4", "baseline_features=3", "at_least=2", "limit=6"]
ASK = ["explain", "run=runs/sae", *EXPLAIN, "explainer=openai", "explainer.model=m"]
ASK += ["explainer.base_url=SERVER", "explainer.concurrency=1"]
FEW = ["tokens=512", "windows=4"]
STORE = [*MODEL, *TEXT, "sites=[mlp_in.1,resid_post.1]", "output=acts", "shard_tokens=512"]

MAKE = (
    [*TRAIN, "dict=clt", "name=clt"],
    [*TRAIN, "dict=sae", "dict.layer=1", "name=sae", "beside=false"],
    ["features", "run=runs/clt", *FEATURES],
    ["features", "run=runs/sae", *FEATURES],
    ["explain", "run=runs/clt", *EXPLAIN],
    ASK,
    ["targets", *MODEL, *TEXT, "output=targets", "head=4", "samples=4"],
    ["cache", *STORE],
    ["export", "run=runs/clt", "format=circuit_tracer", "output=theirs/circuit_tracer", *FEW],
    ["export", "run=runs/sae", "format=saelens", "output=theirs/saelens", *FEW],
    ["export", "run=runs/sae", "format=sparsify", "output=theirs/sparsify", *FEW],
    ["export", "run=runs/sae", "format=dictionary_learning", "output=theirs/learning", *FEW],
)
NAMED = [*MODEL, *TEXT]
CHEAP: Mapping[str, list[str]] = {
    "report": ["report", "run=runs/clt"],
    "pages": ["pages", "run=runs/clt"],
    "lookup": ["lookup", "run=runs/clt", "vector=v.npy", "examples=2", "output=out.json"],
    "lookup by texts": ["lookup", "run=runs/sae", "pos='a|||b'", "neg='c|||d'", "features=3"],
    "lookup in another's": ["lookup", "dictionary=theirs/saelens", *MODEL, "vector=v.safetensors"],
    "compare": ["compare", "runs/clt", "runs/sae", "output=out"],
    "label": ["label", "run=runs/clt", "graph=graph.json", "output=out.json"],
    "plan": ["plan", *NAMED, "dict=sae", "dict.n_features=24", "dict.k=4"],
    "export feature_files": ["export", "run=runs/clt", "format=feature_files"],
    "export neuronpedia": ["export", "run=runs/clt", "format=neuronpedia"],
}
OF_LAYER_1 = ["dict=sae", "dict.layer=1"]
STORED = [text for text in TRAIN if not text.startswith("source.")]
DEAR: Mapping[str, list[str]] = {
    "export circuit_tracer": ["export", "run=runs/clt", "format=circuit_tracer", *FEW],
    "export hub": ["export", "run=runs/sae", "format=hub", "format.formats=[saelens]", *FEW],
    "export saelens": ["export", "run=runs/sae", "format=saelens", *FEW],
    "export sparsify": ["export", "run=runs/sae", "format=sparsify", *FEW],
    "export dictionary_learning": ["export", "run=runs/sae", "format=dictionary_learning", *FEW],
    "export another's": ["export", "dictionary=theirs/learning", *NAMED, "format=saelens", *FEW],
    "evaluate": ["evaluate", "run=runs/clt", "eval_tokens=256", "eval.baselines.fit_tokens=256"],
    "evaluate another's": ["evaluate", "dictionary=theirs/sparsify", *NAMED, "eval_tokens=256"],
    "features": ["features", "run=runs/sae", *FEATURES],
    "features of another's": ["features", "dictionary=theirs/circuit_tracer", *NAMED, *FEATURES],
    "explain": ["explain", "run=runs/clt", *EXPLAIN],
    "explain openai": ASK,
    "targets": ["targets", *NAMED, "output=targets", "head=4", "samples=4"],
    "cache": ["cache", *STORE, "verify=true"],
    "train cached": [*STORED, "source=cache", "source.path=acts", *OF_LAYER_1, "name=new"],
    "train resume": ["train", "resume=auto", "name=clt", "steps=6"],
    "train init": [*TRAIN, "dict=sae", "dict.layer=1", "init=runs/sae", "name=new"],
    "train init another's": [
        *[*TRAIN, "dict=sae", "dict.layer=1", "init=theirs/saelens", "sparsity=jumprelu"],
        "name=new",
    ],
    "train stored": [
        *[*STORED, "objective=kl", "source=windows", "teacher=stored", "teacher.folder=targets"],
        *["dict=sae", "dict.layer=1", "name=new"],
    ],
}
COMMANDS = {**CHEAP, **DEAR}


def answer(body: dict[str, Any]) -> str:
    """What the server behind explainer=openai says: numbers to a scorer, else a description."""
    scored = "Description:" in body["messages"][-1]["content"]
    return "[0, 1, 0, 1, 0]" if scored else "DESCRIPTION: text in quotes"


def made(folder: Path, server: str, commands: Sequence[list[str]] = MAKE) -> None:
    """Fills an empty `folder` by `commands`; `server` is the address of one that gives `answer`."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(PICO_PATH)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    lines = [{"text": f"def f{i}(x):\n    return 'a {i}' + x[{i}:]\n" * 3} for i in range(60)]
    (folder / "text.jsonl").write_text("\n".join(map(json.dumps, lines)))
    direction = np.random.default_rng(0).normal(size=WIDTH).astype(np.float32)
    np.save(folder / "v.npy", direction)
    save_file({"v": torch.from_numpy(direction)}, folder / "v.safetensors")
    for command in commands:
        call = called(command, folder, server)
        assert call.status == 0, f"{command}: {call.status} {call.err}"
    numbers = [(layer, i) for layer in range(LAYERS) for i in range(0, 24, 5)]
    nodes = [
        {
            "node_id": f"{layer}_{i}_3",
            "feature": (layer + i) * (layer + i + 1) // 2 + i,
            "layer": str(layer),
            "ctx_idx": 3,
            "feature_type": "cross layer transcoder",
            "clerp": "",
        }
        for layer, i in numbers
    ]
    graph = {"metadata": {"slug": "a"}, "nodes": nodes, "links": [], "qParams": {}}
    (folder / "graph.json").write_text(json.dumps(graph))


# --- a call -----------------------------------------------------------------------------------


@dataclass
class Call:
    """What came of one command."""

    status: int | str  # of the process; what was raised instead
    out: str = ""
    err: str = ""
    wrote: dict[str, str] = field(default_factory=dict)  # files that are new or changed: hash
    seconds: float = 0.0
    grown: int = 0  # bytes of memory at the peak above those before


def called(args: list[str], folder: Path, server: str) -> Call:
    """`dictlearn <args>` in `folder`, in this process, with the user's own files there too."""
    args = [text.replace("SERVER", server) for text in args]
    before, start, memory = _files(folder), time.perf_counter(), _resident(peak=False)
    with _at_home(folder), _caught() as (out, err), _arguments(["dictlearn", *args]):
        try:
            cli.main()
            status = 0
        except SystemExit as exit:
            status = exit.code if isinstance(exit.code, int) else 0 if exit.code is None else 1
        except BaseException as error:
            status = f"{type(error).__name__}: {str(error)[:500]}"
    wrote = {
        name: _content(folder / name)
        for name, stamp in _files(folder).items()
        if before.get(name) != stamp
    }
    grown = _resident(peak=True) - memory
    seconds = time.perf_counter() - start
    return Call(status, _plain(out[0], folder), _plain(err[0], folder), wrote, seconds, grown)


@contextmanager
def _at_home(folder: Path) -> Iterator[None]:
    """In `folder`, with the user's key and caches inside."""
    own = {"XDG_STATE_HOME": str(folder / "state"), "XDG_CACHE_HOME": str(folder / "cache")}
    own |= {"HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    where, before = Path.cwd(), {name: os.environ.get(name) for name in own}
    os.chdir(folder)
    os.environ.update(own)
    try:
        yield
    finally:
        os.chdir(where)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _caught() -> Iterator[tuple[list[str], list[str]]]:
    """Everything that is written to stdout and stderr meanwhile, by libraries in C too."""
    texts: tuple[list[str], list[str]] = ([], [])
    streams = sys.stdout, sys.stderr
    files = [tempfile.TemporaryFile() for _ in texts]  # noqa: SIM115 closed below
    for stream in streams:
        stream.flush()
    kept = [os.dup(number) for number in (1, 2)]
    for number, file in zip((1, 2), files, strict=True):
        os.dup2(file.fileno(), number)
    sys.stdout, sys.stderr = (
        open(number, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        for number in (1, 2)
    )
    try:
        yield texts
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = streams
        for number, one, file, text in zip((1, 2), kept, files, texts, strict=True):
            os.dup2(one, number)
            os.close(one)
            file.seek(0)
            text.append(file.read().decode("utf-8", "backslashreplace"))
            file.close()


@contextmanager
def _arguments(args: list[str]) -> Iterator[None]:
    before, sys.argv = sys.argv, args
    try:
        yield
    finally:
        sys.argv = before


def _resident(peak: bool) -> int:
    """Bytes of memory of this process: now, or the most since the last question for now."""
    if not peak:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    key = "VmHWM:" if peak else "VmRSS:"
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(key))


def _files(folder: Path) -> dict[str, tuple[int, int, int]]:
    stats = {
        path.relative_to(folder).as_posix(): path.stat()
        for path in folder.rglob("*")
        if path.is_file()
    }
    return {name: (s.st_ino, s.st_size, s.st_mtime_ns) for name, s in stats.items()}


def _plain(text: str, folder: Path) -> str:
    return text.replace(f"{folder}/", "").replace(str(folder), ".")


TIMES = re.compile(
    r"\d{8}-\d{6}(-\d+)?|\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d)?)?|[\d.,]+ (s|seconds|tokens/s)\b"
    r'|"seconds": [\d.]+'
)


def _content(path: Path) -> str:
    """A hash of a file, without what differs from one time to another."""
    data = path.read_bytes()
    if path.suffix == ".gz":  # whose header has the time
        data = gzip.decompress(data)
    if path.suffix in (".html", ".json", ".jsonl", ".csv", ".yaml", ".md"):
        data = TIMES.sub("", data.decode("utf-8", "backslashreplace")).encode()
    return hashlib.sha256(data).hexdigest()


# --- what comes of it -------------------------------------------------------------------------


@dataclass
class Whole:
    """What a command gives of the whole tree, twice the same."""

    shapes: set[str]  # of lines on stderr
    out: str | None
    wrote: dict[str, str]


def expected(name: str, whole: Path, place: Path, server: str) -> Whole:
    """From two calls; what differs between them (times) isn't compared."""
    calls = []
    for _ in range(2):
        fresh(whole, place)
        calls.append(call := called(COMMANDS[name], place, server))
        assert call.status == 0, f"{name}: {call.status} {call.err}"
    one, two = calls
    wrote = {f: h for f, h in one.wrote.items() if two.wrote.get(f) == h and _counts(f)}
    shapes = {_shape(line) for call in calls for line in call.err.splitlines()}
    return Whole(shapes, one.out if one.out == two.out else None, wrote)


READERS = {  # of files that few of the commands that name their folder read
    "checkpoints/": ["train resume"],
    "config.yaml": ["report", "compare"],
    "metrics.": ["report", "compare"],
    "figures.json": ["report", "compare", "pages", "export hub"],
    "features/explain_cache": ["explain openai"],
    "beside/": ["evaluate", "train resume"],
}


def touching(damaged: Path) -> list[str]:
    """The commands that read a file; of what is everybody's (the model, text, the user's key and
    caches), all."""
    places = {str(part) for part in (damaged, *damaged.parents)} - {"."}
    if damaged.parts[0] not in ("runs", "targets", "theirs", "acts"):
        alone = {"graph.json": "label", "v.npy": "lookup", "v.safetensors": "lookup in another's"}
        return [alone[str(damaged)]] if str(damaged) in alone else list(COMMANDS)
    few = next((names for part, names in READERS.items() if part in str(damaged)), COMMANDS)
    return [
        command
        for command in few
        if places & {word for arg in COMMANDS[command] for word in (arg, arg.partition("=")[2])}
        or f"name={damaged.parts[1]}" in COMMANDS[command]
    ]


def fresh(whole: Path, place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(whole, place)


def _counts(name: str) -> bool:
    """Whether a file is a result: manifests have the time, and caches may be made anew."""
    return not name.endswith((MANIFEST, ".lock")) and not name.startswith(("cache/", "state/"))


def _shape(line: str) -> str:
    return re.sub(r"[\d,.]+", "#", line)


def judged(call: Call, whole: Whole, damaged: str, believed: bool) -> str:
    """ "refused", "right", "said", "changed", or what went wrong. `believed`: no hash can tell."""
    text = call.out + call.err
    if call.status not in (0, 2):
        return f"status {call.status}: {call.err[-1500:]}"
    for wrong in UNWANTED:
        if found := wrong.search(text):
            return f"status {call.status}, and {found[0]!r} in: {text[-1500:]}"
    if left := [name for name in call.wrote if re.search(r"\.(tmp|old)-\d+", name)]:
        return f"status {call.status} and leaves {left[0]}"
    new = [line for line in call.err.splitlines() if _shape(line) not in whole.shapes]
    if call.status == 2:
        new = [line for line in new if not any(note.search(line) for note in NOTES)]
        if len(new) != 1 or len(new[0]) > 3000:
            return f"not a sentence: {new}"
        return "refused" if named(damaged, new) else f"doesn't say which file: {new[0]}"
    same = whole.out in (None, call.out) and all(
        call.wrote.get(file) == content for file, content in whole.wrote.items()
    )
    if same:
        return "right"
    if believed:
        return "changed"
    if named(damaged, new):
        return "said"
    differ = [f for f, content in whole.wrote.items() if call.wrote.get(f) != content]
    return f"silently something else: {differ[:5]} {new} {call.out[-300:]}"


KEYS = {"model": ("model.", "tokenizer"), "text.jsonl": ("data",)}
NOTES = (  # what may be said of a run before it is refused
    re.compile(r"^\[transformers\] "),  # of keys in a model's config.json
    re.compile(r"^skipped a damaged checkpoint: "),
    re.compile(r"^runs/\w+: .* tokens .*on the CPU$|tokens a parameter, "),
)


def named(damaged: str, lines: Iterable[str]) -> bool:
    """Whether one of the lines has the file in it, a folder that it is in, or the key that led to it. Of
    the user's key none has: without it, a run is as somebody else's."""
    if damaged.startswith("state/"):
        return True
    parts = [damaged, Path(damaged).name, *map(str, Path(damaged).parents)][:-1]
    parts += KEYS.get(Path(damaged).parts[0], ())
    return any(part in line for line in lines for part in parts)


PYTHONS = (  # words for what is wrong with code; what transformers says of a model's files may have them
    r"codec can't|__\w+__|\bobject (has no|is not|does not)|unexpected keyword|NoneType|"
    r"\b(Key|Type|Value|Index|Attribute|Unicode\w+|JSONDecode)Error\b|<class '"
)
UNWANTED = (
    re.compile(rf"^(?!.*model\.path=).*({PYTHONS})", re.MULTILINE),
    re.compile(r"Traceback \(most recent"),
    re.compile(r"\[Errno -?\d+\]|\(os error \d+\)"),
    re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"),
    re.compile(r"<[\w. ]+ object at 0x"),
)


def covered(path: Path, root: Path) -> bool:
    """Whether a hash that is read with the file says what it must be."""
    if path.is_relative_to(root / "acts"):
        return True
    for folder in path.parents[: len(path.parents) - len(root.parents)]:
        manifest = folder / MANIFEST
        name = path.relative_to(folder).as_posix()
        if manifest.is_file() and name in json.loads(manifest.read_text())["files"]:
            return True
    return False


def sorts(whole: Path) -> dict[str, list[Path]]:
    """The files of a tree, relative, by what sort they are: names alike but for numbers. What is only
    ever written (pages, pictures) is one sort."""
    found: dict[str, list[Path]] = {}
    for path in sorted(whole.rglob("*")):
        name = path.relative_to(whole)
        if path.is_file() and not name.is_relative_to("runs/sae/checkpoints"):  # no command's
            shown = name.suffix in (".html", ".png", ".js", ".css", ".lock")
            sort = "pages" if shown else re.sub(r"[\da-f]{16,}|\d+", "#", name.as_posix())
            found.setdefault(sort, []).append(name)
    return found


def damage_one(
    tree: Path, rng: random.Random, readers: Sequence[str] = tuple(COMMANDS)
) -> tuple[str, Path, bool]:
    """Damages a file of `tree` that one of `readers` reads: what was done, which file it is, and whether
    no hash can tell."""
    kinds = {
        sort: files for sort, files in sorts(tree).items() if set(readers) & set(touching(files[0]))
    }
    name = rng.choice(kinds[rng.choice(sorted(kinds))])
    path, damage = tree / name, rng.choice(DAMAGES)
    known = covered(path, tree)
    damage(path, rng)
    fits = known and path.exists() and rng.random() < FITS
    if fits:
        make_fit(path, tree)
    what = f"{damage.__name__} of {name}{', hashes made to fit' if fits else ''}"
    return what, name, fits or not known
