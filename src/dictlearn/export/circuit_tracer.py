"""circuit-tracer's folders: transcoders of every layer (transcoder_set), or a CLT.

The layout is that of circuit-tracer 0.4 and 0.5. Units are raw, as in the inference form:

    config.yaml                   model_kind, feature_input_hook, feature_output_hook, model_name
    transcoder_set                layer_{i}.safetensors: W_enc [F, D], b_enc [F], W_dec [F, D],
                                  b_dec [D], activation_function.threshold [F], W_skip [D, D]
    cross_layer_transcoder        W_enc_{i}.safetensors: W_enc_{i} [F, D], b_enc_{i} [F],
                                  b_dec_{i} [D], threshold_{i} [F]
                                  W_dec_{i}.safetensors: W_dec_{i} [F, L - i, D], to layers i, i + 1, ...

Each feature's row is contiguous, so that circuit-tracer's lazy slices read nothing else. For local
folders its loader uses ReLU unless there are thresholds, and has no TopK.
"""

from __future__ import annotations

from pathlib import Path
from typing import final

import torch
import yaml
from torch import Tensor

from dictlearn import __version__
from dictlearn.ckpt.files import write_tensors
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.equivalent import layered
from dictlearn.export import _layers
from dictlearn.export.protocol import Exporter, Job
from dictlearn.types import ModelInfo

INPUT_HOOK = "mlp.hook_in"
# The hook of what an MLP adds to the residual, after the norm if one follows the MLP (gemma).
OUTPUT_HOOKS = {
    "llama": "mlp.hook_out",
    "qwen3": "mlp.hook_out",
    "gpt_oss": "mlp.hook_out",
    "gpt2": "mlp.hook_out",
    "gemma2": "hook_mlp_out",
    "gemma3_text": "hook_mlp_out",
}


@final
class CircuitTracer(Exporter):
    """
    Args:
        scan: the hub id or folder of the features' examples, which graphs refer to.
        feature_output_hook: the output hook for a family that is not in OUTPUT_HOOKS.
    """

    name = "circuit_tracer"

    def __init__(self, scan: str | None = None, feature_output_hook: str | None = None):
        self.scan, self.feature_output_hook = scan, feature_output_hook

    def holds(self, dictionary: Dictionary) -> frozenset[str]:
        return frozenset({"jumprelu", "relu"})

    def refusal(self, dictionary: Dictionary, info: ModelInfo) -> str | None:
        shape, layers = dictionary.shape, range(info.n_layers)
        supported = dictionary.layerwise and dictionary.decoder.writes_directions
        if not supported or not (shape.link.cross_layer or layered(dictionary)):
            return f"it holds transcoders per layer and cross-layer transcoders, no {shape.kind}"
        sites = [f"mlp_in.{i}" for i in layers], [f"mlp_out.{i}" for i in layers]
        if (list(shape.sources), list(shape.targets)) != sites:
            return (
                f"circuit-tracer replaces the MLP of every layer, 0 to {info.n_layers - 1} of "
                f"{info.name}; this {shape.kind} goes from {', '.join(shape.sources)} to "
                f"{', '.join(shape.targets)}"
            )
        if shape.skip and shape.link.cross_layer:
            return "its cross-layer transcoders have no skip and would drop this one's silently"
        if self.feature_output_hook is None and info.family not in OUTPUT_HOOKS:
            return (
                f"the output hook of the MLPs of {info.family} models is unknown; set "
                f"format.feature_output_hook=mlp.hook_out, or hook_mlp_out"
            )
        return None

    def write(self, job: Job, folder: Path) -> None:
        cross_layer = job.dictionary.shape.link.cross_layer
        (write_clt if cross_layer else write_transcoders)(job.dictionary, folder)
        settings = {
            "model_kind": "cross_layer_transcoder" if cross_layer else "transcoder_set",
            "feature_input_hook": INPUT_HOOK,
            "feature_output_hook": self.feature_output_hook or OUTPUT_HOOKS[job.info.family],
            "model_name": job.info.name,
            **({"scan": self.scan} if self.scan else {}),
            "dictlearn": {  # circuit-tracer ignores keys that it doesn't know
                "version": __version__,
                "kind": job.dictionary.kind,
                "k": job.dictionary.shape.k,
                "revision": job.info.revision,
                "tokens": job.training.get("tokens"),
                "trained_as": job.training.get("sparsity", {}).get("_target_"),
                "figures": dict(job.figures),
            },
        }
        text = yaml.safe_dump(settings, sort_keys=False)
        (folder / "config.yaml").write_text(text, encoding="utf-8")

    def usage(self, dictionary: Dictionary, repo: str, inner: str) -> str:
        return f"""import torch
from circuit_tracer.utils.hf_utils import load_transcoder_from_hub
from huggingface_hub import snapshot_download

folder = snapshot_download("{repo}", allow_patterns="{inner}/*")
transcoders, config = load_transcoder_from_hub(f"{{folder}}/{inner}", device=torch.device("cpu"))
"""


def write_transcoders(dictionary: Dictionary, folder: Path) -> None:
    for i in range(dictionary.n_sources):
        tensors = {
            "W_enc": dictionary.encoder.W_enc[i],
            "b_enc": b_enc(dictionary, i),
            "W_dec": decoder_rows(dictionary, i, i),
            "b_dec": dictionary.decoder.b_dec[i],
        }
        if (threshold_F := threshold(dictionary, i)) is not None:
            tensors["activation_function.threshold"] = threshold_F
        if dictionary.W_skip is not None:
            tensors["W_skip"] = dictionary.W_skip[i]  # x @ W_skip.T there as here
        write_tensors(folder / f"layer_{i}.safetensors", tensors)


def write_clt(dictionary: Dictionary, folder: Path) -> None:
    n_layers = dictionary.n_sources
    for i in range(n_layers):
        tensors = {
            f"W_enc_{i}": dictionary.encoder.W_enc[i],
            f"b_enc_{i}": b_enc(dictionary, i),
            f"b_dec_{i}": dictionary.decoder.b_dec[i],
        }
        if (threshold_F := threshold(dictionary, i)) is not None:
            tensors[f"threshold_{i}"] = threshold_F
        write_tensors(folder / f"W_enc_{i}.safetensors", tensors)
        decoder_FTD = torch.stack(
            [decoder_rows(dictionary, i, t) for t in range(i, n_layers)], dim=1
        )
        write_tensors(folder / f"W_dec_{i}.safetensors", {f"W_dec_{i}": decoder_FTD})


def threshold(dictionary: Dictionary, s: int) -> Tensor | None:
    """The thresholds of source s, [F]; None for ReLU, whose file has none."""
    if dictionary.sparsity.name == "relu":
        return None
    return _layers.thresholds(dictionary)[s]


def b_enc(dictionary: Dictionary, s: int) -> Tensor:
    """The encoder's bias for inputs that are not centred, [F]."""
    bias_F = dictionary.encoder.b_enc[s]
    if not dictionary.shape.centre:
        return bias_F
    return bias_F - dictionary.encoder.W_enc[s] @ dictionary.decoder.b_dec[s]


def decoder_rows(dictionary: Dictionary, s: int, t: int) -> Tensor:
    """The vectors from source s to target t, [F, D]; zero if t doesn't read s."""
    if s not in dictionary.reads(t):
        return dictionary.encoder.W_enc.new_zeros(dictionary.n_features, dictionary.width)
    return dictionary.decoder.written(t, s, slice(None))
