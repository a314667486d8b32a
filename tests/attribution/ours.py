"""Run by dictlearn's own environment: trains, exports, and writes down what our side computes.

Transcoders per layer with a skip and a CLT are trained for a moment; a tied CLT with a window is as
it was initialised.

python ours.py <folder>
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch

import dictlearn
from dictlearn import cli
from dictlearn.attribution.attribute import Settings, attribute
from dictlearn.attribution.circuit_tracer import as_json
from dictlearn.ckpt.dictionary import save_dictionary
from dictlearn.ckpt.files import write_tensors
from dictlearn.dicts.clt import clt
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.disk.whole import write_json
from dictlearn.interventions import run as interventions
from dictlearn.interventions.edits import as_edit
from dictlearn.interventions.passes import Setting
from dictlearn.lm.capture import capture
from dictlearn.lm.language_model import LanguageModel
from dictlearn.lm.load import load_model, read_info
from dictlearn.sparsity.jumprelu import JumpReLU
from dictlearn.types import Code

SETTINGS = {  # as the test calls circuit-tracer
    "free": Setting(),
    "attention": Setting(attention=True),
    "inner": Setting(layers=range(1, 3), attention=True),
    "direct": Setting(layers=range(4), attention=True),
}
GRAPHS = {"all": Settings(), "some": Settings(nodes=200, rank_every=64)}
TEXT = "def add(first, second):\n    return first + second\n\nclass Error(ValueError):\n    pass\n"
SMALL = [
    "steps=80",
    "batch_tokens=512",
    "source.buffer_tokens=8192",
    "source.lm_batch_windows=8",
    "data.context=128",
    "data.max_tokens=60000",
    "dict.n_features=512",
    "optim.lr=3e-3",
    "beside=false",
    "eval=reconstruction",
    "eval_tokens=1024",
    "trainer=cpu",
]
TRAINED = {  # each way that features come to have thresholds
    "plt": ["dict=plt", "sparsity=topk", "dict.skip=true"],
    "clt": ["dict=clt", "sparsity=batchtopk"],
}


def main(folder: Path) -> None:
    for name, options in TRAINED.items():
        run(["train", f"run_dir={folder / name}", f"name={name}", *SMALL, *options])
    text = dictlearn.load(folder / "clt").provenance
    few = partial(JumpReLU, init_threshold=2.0)  # of 512 features, some ten on a token
    tied = clt(read_info("pico"), few, n_features=512, tied=True, window=2)
    save_dictionary(tied.eval(), folder / "tied" / "dictionary", text)
    names = [*TRAINED, "tied"]
    for name in names:
        run(["export", f"run={folder / name}", "format=circuit_tracer", "tokens=4096"])
    few_examples = ["tokens=4096", "examples=4", "intervals=2", "per_interval=2"]
    run(["features", f"run={folder / 'clt'}", *few_examples])
    files = ["export", f"run={folder / 'clt'}", "format=feature_files"]
    run([*files, f"output={folder / 'packed'}"])
    run([*files, f"output={folder / 'served' / 'plain'}", "format.packed=false"])
    lm = load_model("pico")
    assert lm.tokenizer is not None
    tokens_BP = torch.tensor([[1, *lm.tokenizer(TEXT, add_special_tokens=False)["input_ids"]]])
    tensors = {"tokens": tokens_BP[0], "logits": lm.logits(tokens_BP)[0].float()}
    for name in names:
        # What was exported: thresholds have replaced TopK.
        dictionary = dictlearn.load(folder / name / "export" / "circuit_tracer")
        acts = capture(lm, tokens_BP, [*dictionary.sources, *dictionary.targets])
        x_NSD = torch.stack([acts[site][0] for site in dictionary.sources], dim=1)
        code = dictionary.encode(x_NSD)
        tensors |= {
            "x": x_NSD,
            f"{name}/code": code.dense(),
            f"{name}/y_hat": dictionary.decode(code, x_NSD),
        }
        tensors |= intervened(lm, tokens_BP, dictionary, code, name)
        tensors |= attributed(lm, tokens_BP[0], dictionary, name, folder)
    write_tensors(folder / "ours.safetensors", tensors)


def attributed(
    lm: LanguageModel, tokens_P: torch.Tensor, dictionary: Dictionary, name: str, folder: Path
) -> dict[str, torch.Tensor]:
    """Attribution graphs of all features and of some, with their JSON in `folder`/ours."""
    tensors = {}
    for which, settings in GRAPHS.items():
        graph = attribute(lm, [dictionary], tokens_P, settings=settings)
        assert graph.conservation < 1e-4
        nodes = graph.nodes
        key = f"{name}/{which}"
        selected = torch.stack([nodes.layer, nodes.position, nodes.index], 1)
        tensors[f"{key}/selected"] = selected
        tensors[f"{key}/edges"] = graph.edges.dense()
        tensors[f"{key}/scores"] = torch.tensor(graph.scores)
        slug = f"{name}-{which}"
        write_json(folder / "ours" / f"{slug}.json", as_json(graph, graph.prune(), slug, "here"))
    return tensors


def intervened(
    lm: LanguageModel, tokens_BP: torch.Tensor, dictionary: Dictionary, code: Code, name: str
) -> dict[str, torch.Tensor]:
    """What three features of different layers do to the logits when they change, by setting."""
    dense_NSF = code.dense()
    edits = []
    for layer, position, factor in ((0, 4, 3.0), (1, 9, 0.0), (2, 4, -2.0)):
        feature = int(dense_NSF[position, layer].argmax())
        value = factor * float(dense_NSF[position, layer, feature])
        edits.append((layer, position, feature, value))
    tensors = {f"{name}/edits": torch.tensor(edits, dtype=torch.float64)}
    for setting, how in SETTINGS.items():
        # We refuse an edit that can write nowhere in the constrained layers; theirs does nothing.
        blocks = range(4) if how.layers is None else how.layers
        changes = [
            as_edit(edit) for edit in edits if any(edit[0] in dictionary.reads(t) for t in blocks)
        ]
        tensors[f"{name}/{setting}"] = interventions.run(
            lm, tokens_BP, [dictionary], changes, how
        ).logits[0]
    return tensors


def run(arguments: list[str]) -> None:
    sys.argv = ["dictlearn", *arguments]
    try:
        cli.main()
    except SystemExit as done:
        if done.code:
            raise


if __name__ == "__main__":
    main(Path(sys.argv[1]))
