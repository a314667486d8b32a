"""Trains pico, the language model that ships with dictlearn, on the standard library's source.

    python scripts/train_pico.py --minutes 60                 # resumes by itself after an interruption
    python scripts/train_pico.py --minutes 60 --early-minutes 10 --ship src/dictlearn/lm/pico

The work folder (--work) holds the tokenizer, the tokens and the newest checkpoint, all safetensors
and JSON; the folder given to --ship gets the model in the hub's layout, bf16, with a model card
whose every figure is measured here on the shipped file itself.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from pico_card import model_card
from pico_muon import Muon
from pico_ngrams import KneserNey
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from dictlearn.sources.documents import is_held_out, stdlib_documents

PAD, BOS = "<|pad|>", "<|bos|>"
PAD_ID, BOS_ID, FIRST_ID = 0, 1, 2
VOCABULARY, CONTEXT, HELD_OUT = 4096, 512, 0.1
# Letters with one leading mark, up to three digits, other marks, line ends, runs of blanks.
PIECES = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class Recipe:
    windows: int = 8  # of CONTEXT tokens, a step
    matrix_lr: float = 0.01  # Muon, for the matrices of the blocks
    momentum: float = 0.95
    lr: float = 3e-3  # AdamW, for the embedding and the norms
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.05  # of matrices, the embedding too
    warmup_steps: int = 60
    decay_from: float = 0.6  # of the run; linear to zero from here
    clip: float = 1.0
    repeated: float = 0.07  # of the windows: random spans, repeated, for induction
    seed: int = 0
    bf16: bool = False  # autocast; a processor without it is thirty times slower so


def pico_config() -> Qwen3Config:
    return Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=BOS_ID,
        eos_token_id=BOS_ID,
        pad_token_id=PAD_ID,
    )


def train_tokenizer(texts: list[str], vocabulary: int = VOCABULARY) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@dataclass(frozen=True)
class Corpus:
    """Token streams of whole documents, each after a BOS, and where each document starts."""

    train: np.ndarray  # uint16
    train_starts: np.ndarray  # int64, one more than there are documents
    held_out: np.ndarray


def _stream(tokenizer: Tokenizer, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
    documents = [np.array([BOS_ID, *encoding.ids], dtype=np.uint16) for encoding in encodings]
    starts = np.cumsum([0, *map(len, documents)], dtype=np.int64)
    return np.concatenate(documents), starts


def load_corpus(work: Path) -> tuple[Tokenizer, Corpus]:
    """The tokenizer and the tokens, made once: a resumed run reads what the first one wrote."""
    tokenizer_path, tokens_path = work / "tokenizer.json", work / "tokens.safetensors"
    if not tokens_path.exists():
        documents = stdlib_documents()
        train = [text for key, text in documents if not is_held_out(key, HELD_OUT)]
        held_out = [text for key, text in documents if is_held_out(key, HELD_OUT)]
        tokenizer = train_tokenizer(train)
        tokenizer.save(str(tokenizer_path))
        stream, starts = _stream(tokenizer, train)
        arrays = {
            "train": stream,
            "train_starts": starts,
            "held_out": _stream(tokenizer, held_out)[0],
        }
        save_atomically({name: torch.from_numpy(a) for name, a in arrays.items()}, tokens_path)
    arrays = {name: tensor.numpy() for name, tensor in load_file(tokens_path).items()}
    return Tokenizer.from_file(str(tokenizer_path)), Corpus(**arrays)


def save_atomically(tensors: dict[str, Tensor], path: Path) -> None:
    partial = path.with_suffix(".partial")
    save_file(tensors, partial)
    os.replace(partial, path)


class TrainingWindows:
    """Window i of an endless sequence, a pure function of (seed, i).

    Every epoch packs the documents in another order, and shuffles the windows: neighbours in one
    document would make a batch of one kind.
    """

    def __init__(self, corpus: Corpus, recipe: Recipe):
        self.corpus, self.recipe = corpus, recipe
        self.per_epoch = len(corpus.train) // CONTEXT
        self.epoch, self.windows = -1, np.empty((0, CONTEXT), dtype=np.uint16)

    def _window(self, index: int) -> np.ndarray:
        epoch, row = divmod(index, self.per_epoch)
        if epoch != self.epoch:
            starts = self.corpus.train_starts
            rng = np.random.default_rng([self.recipe.seed, epoch])
            order = rng.permutation(len(starts) - 1)
            stream = np.concatenate([self.corpus.train[starts[i] : starts[i + 1]] for i in order])
            windows = stream[: self.per_epoch * CONTEXT].reshape(-1, CONTEXT)
            self.windows = rng.permutation(windows)
            self.epoch = epoch
        return self.windows[row]

    def step(self, step: int) -> tuple[Tensor, Tensor]:
        """(inputs, labels) of a step, int64 [windows, CONTEXT]; labels are -100 where not scored."""
        size = self.recipe.windows
        inputs = np.stack([self._window(step * size + i) for i in range(size)]).astype(np.int64)
        labels = inputs.copy()
        rng = np.random.default_rng([self.recipe.seed, 1 << 32, step])
        for row in np.flatnonzero(rng.random(size) < self.recipe.repeated):
            span = round(math.exp(rng.uniform(math.log(8), math.log(CONTEXT // 2))))
            if rng.random() < 0.5:
                tokens = rng.integers(FIRST_ID, VOCABULARY, span)
            else:  # as frequent as in text, in no order
                tokens = np.maximum(rng.choice(self.corpus.train, span), FIRST_ID)
            inputs[row] = np.resize(tokens, CONTEXT)
            if rng.random() < 0.5:
                inputs[row] = np.concatenate([[BOS_ID], inputs[row, :-1]])
            labels[row] = inputs[row]
            labels[row, : span + 1] = -100  # the first copy cannot be predicted: nothing to learn
        return torch.from_numpy(inputs), torch.from_numpy(labels)


def token_losses(model: Qwen3ForCausalLM, inputs: Tensor, labels: Tensor) -> Tensor:
    """Nats per token, [B, P - 1]; zero where the label is -100."""
    hidden = model.model(input_ids=inputs, use_cache=False).last_hidden_state
    logits = model.lm_head(hidden[:, :-1]).float()
    losses = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="none")
    return losses.view(len(inputs), -1)


def schedule(recipe: Recipe, step: int, progress: float) -> float:
    """The factor on both learning rates."""
    warm = min(1.0, (step + 1) / recipe.warmup_steps)
    return warm * min(1.0, max(0.0, 1 - progress) / (1 - recipe.decay_from))


class Trainer:
    """Data parallel over threads: each computes the gradient of its share of a step's windows.

    They meet once a step rather than at every operation, which matters on a busy machine.
    """

    def __init__(self, recipe: Recipe, corpus: Corpus, work: Path, threads: int = 2):
        self.recipe, self.work, self.threads = recipe, work, threads
        torch.manual_seed(recipe.seed)
        self.model = Qwen3ForCausalLM(pico_config())
        self.parameters = list(self.model.parameters())
        embedding = self.model.get_input_embeddings().weight
        matrices = [p for p in self.parameters if p.ndim == 2 and p is not embedding]
        vectors = [p for p in self.parameters if p.ndim == 1]
        self.muon = Muon(matrices, recipe.momentum, recipe.weight_decay)
        self.adam = torch.optim.AdamW(
            [{"params": [embedding]}, {"params": vectors, "weight_decay": 0.0}],
            betas=recipe.betas,
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        self.windows = TrainingWindows(corpus, recipe)
        self.done = {"step": 0, "seconds": 0.0, "shipped": 0}
        torch.set_num_threads(1)
        self.pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))

    def _gradient(self, inputs: Tensor, labels: Tensor, scored: Tensor) -> list[Tensor]:
        with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.bf16):
            loss = token_losses(self.model, inputs, labels).sum() / scored
            return [loss.detach(), *torch.autograd.grad(loss, self.parameters)]

    def step(self, progress: float) -> float:
        """Trains on the next windows; returns their loss in nats per scored token."""
        step = self.done["step"]
        inputs, labels = self.windows.step(step)
        scored = (labels[:, 1:] != -100).sum()
        shares = zip(inputs.chunk(self.threads), labels.chunk(self.threads), strict=True)
        jobs = [self.pool.submit(self._gradient, *share, scored) for share in shares]
        parts = zip(*(job.result() for job in jobs), strict=True)
        loss, *gradients = [torch.stack(part).sum(0) for part in parts]
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip)
        factor = schedule(self.recipe, step, progress)
        if torch.isfinite(norm):
            for group in self.adam.param_groups:
                group["lr"] = self.recipe.lr * factor
            self.adam.step()
            self.muon.step(self.recipe.matrix_lr * factor, self.pool)
        self.done["step"] = step + 1
        return float(loss)

    def save(self) -> None:
        """One file: weights, moments and the run's position travel together."""
        tensors = dict(self._tensors())
        tensors["done"] = torch.tensor(list(json.dumps(self.done).encode()), dtype=torch.uint8)
        save_atomically(tensors, self.work / "checkpoint.safetensors")

    @torch.no_grad()
    def restore(self) -> None:
        """The newest checkpoint, or none."""
        path = self.work / "checkpoint.safetensors"
        if not path.exists():
            return
        saved = load_file(path)
        self.done = json.loads(bytes(saved.pop("done").tolist()))
        for name, tensor in self._tensors():
            tensor.copy_(saved.pop(name))
        assert not saved

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All that training changes, under stable names, in place."""
        for index, parameter in enumerate(self.parameters):
            yield f"{index}.weight", parameter.detach()
        for index, average in enumerate(self.muon.averages):
            yield f"{index}.muon", average
        for group in self.adam.param_groups:
            for parameter in group["params"]:
                index = next(i for i, p in enumerate(self.parameters) if p is parameter)
                # What AdamW would make itself on its first step.
                state = self.adam.state[parameter]
                for name in ("exp_avg", "exp_avg_sq"):
                    yield f"{index}.{name}", state.setdefault(name, torch.zeros_like(parameter))
                yield f"{index}.step", state.setdefault("step", torch.zeros(()))


@torch.no_grad()
def evaluate(
    model: Qwen3ForCausalLM, corpus: Corpus, n_windows: int | None, baselines: bool = True
) -> dict[str, float]:
    """Everything the model card says, on the held-out windows. BOS is never a target."""
    model.eval()
    stream = torch.from_numpy(corpus.held_out.astype(np.int64))
    windows = stream[: len(stream) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    if n_windows is not None:  # spread over all documents
        windows = windows[:: max(1, len(windows) // n_windows)][:n_windows]
    labels = torch.where(windows == BOS_ID, -100, windows)
    pairs = zip(windows.split(8), labels.split(8), strict=True)
    losses = torch.cat([token_losses(model, *pair) for pair in pairs]).double()
    scored = labels[:, 1:] != -100
    figures = {"held_out_tokens": int(scored.sum()), "pico": float(losses.sum() / scored.sum())}
    edges = [0, 16, 64, 128, 256, 384, CONTEXT - 1]
    for low, high in zip(edges, edges[1:], strict=False):
        part = losses[:, low:high].sum() / scored[:, low:high].sum()
        figures[f"position_{low + 1}_{high}"] = float(part)

    generator = torch.Generator().manual_seed(1)
    for name, span in [("", 128), ("_long", 255)]:
        tokens = torch.randint(FIRST_ID, VOCABULARY, (32, span), generator=generator)
        repeated = torch.cat([torch.full((32, 1), BOS_ID), tokens, tokens], dim=1)
        both = torch.cat([token_losses(model, part, part) for part in repeated.split(8)])
        figures[f"first_copy{name}"] = float(both[:, :span].mean())
        # The first token of the second copy cannot be known.
        figures[f"second_copy{name}"] = float(both[:, span + 1 :].mean())

    if baselines:
        rows = windows.numpy()
        for name, order in [("unigram", 1), ("bigram", 2), ("five_gram", 5)]:
            nats = -KneserNey(corpus.train, order, VOCABULARY).log_probabilities(rows)
            figures[name] = float(nats[:, 1:][scored.numpy()].mean())
    return figures


def ship(
    trainer: Trainer, tokenizer: Tokenizer, corpus: Corpus, folder: Path, n_windows: int | None
) -> dict[str, float]:
    """Writes the folder in the hub's layout, bf16, and the card from what that file scores."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    config = pico_config()
    config.architectures = ["Qwen3ForCausalLM"]
    config.dtype = torch.bfloat16
    config.save_pretrained(partial)
    GenerationConfig(bos_token_id=BOS_ID, eos_token_id=BOS_ID, pad_token_id=PAD_ID).save_pretrained(
        partial
    )
    tied = {name: p.detach().bfloat16() for name, p in trainer.model.named_parameters()}
    save_file(tied, partial / "model.safetensors", metadata={"format": "pt"})
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=BOS,
        pad_token=PAD,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(partial)
    settings = json.loads((partial / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # the name that every version knows
    (partial / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")

    shipped = Qwen3ForCausalLM.from_pretrained(partial, dtype=torch.float32)
    figures = evaluate(shipped, corpus, n_windows)
    recipe = trainer.recipe
    facts = {
        "part": "" if n_windows is None else ", a sample while training goes on",
        "parameters": sum(p.numel() for p in shipped.parameters()),
        "steps": trainer.done["step"],
        "tokens": trainer.done["step"] * recipe.windows * CONTEXT,
        "epochs": trainer.done["step"] * recipe.windows / trainer.windows.per_epoch,
        "train_tokens": len(corpus.train),
        "minutes": trainer.done["seconds"] / 60,
        "precision": "bf16 autocast" if recipe.bf16 else "fp32",
        "python": platform.python_version(),
        "recipe": asdict(recipe),
    }
    (partial / "README.md").write_text(model_card(figures, facts))
    folder.mkdir(parents=True, exist_ok=True)
    for path in partial.iterdir():
        path.chmod(0o644)  # safetensors leaves its files to their owner alone
        os.replace(path, folder / path.name)
    partial.rmdir()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description="Train pico and write its card.")
    parser.add_argument("--minutes", type=float, default=60, help="of training, pauses apart")
    parser.add_argument("--steps", type=int, help="of training, instead of minutes")
    parser.add_argument("--work", type=Path, default=Path("runs/pico"))
    parser.add_argument("--ship", type=Path, help="default: the work folder's pico/")
    parser.add_argument("--early-minutes", type=float, nargs="*", default=[], help="ship then too")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bf16", action="store_true", help="for a processor that has it")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    folder = options.ship or options.work / "pico"

    tokenizer, corpus = load_corpus(options.work)
    trainer = Trainer(Recipe(bf16=options.bf16), corpus, options.work, options.threads)
    trainer.restore()
    done = trainer.done
    log = (options.work / "log.jsonl").open("a", buffering=1)

    def note(**entry: float) -> None:
        log.write(json.dumps(entry) + "\n")

    note(train_tokens=len(corpus.train), held_out_tokens=len(corpus.held_out), bf16=options.bf16)
    losses: list[float] = []
    while True:
        if options.steps:
            progress = done["step"] / options.steps
        else:
            progress = done["seconds"] / (60 * options.minutes)
        if progress >= 1:
            break
        start = time.perf_counter()
        losses.append(trainer.step(progress))
        done["seconds"] += time.perf_counter() - start
        if len(losses) == 50:
            note(step=done["step"], seconds=done["seconds"], loss=sum(losses) / 50)
            losses.clear()
        if done["step"] % 50 == 0:
            trainer.save()
        if any(m > done["shipped"] and done["seconds"] > 60 * m for m in options.early_minutes):
            done["shipped"] = done["seconds"] / 60
            note(**ship(trainer, tokenizer, corpus, folder, n_windows=128))
    trainer.save()
    note(**ship(trainer, tokenizer, corpus, folder, n_windows=None))


if __name__ == "__main__":
    main()
