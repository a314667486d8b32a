"""The sizes of the presets' models come with the package: no hub, no weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dictlearn.lm.capture import capture
from dictlearn.lm.hub import SHAPES
from dictlearn.lm.load import load_model, load_skeleton, read_info
from dictlearn.lm.sites import resolve

# (layers, width, parameters in millions): as their cards and safetensors' own indices have them.
PUBLISHED = {
    "Qwen/Qwen3-0.6B": (28, 1024, 596.0),
    "Qwen/Qwen3-4B": (36, 2560, 4022.5),
    "Qwen/Qwen3-8B": (36, 4096, 8190.7),
    "Qwen/Qwen3-30B-A3B": (48, 2048, 30532.1),
    "openai/gpt-oss-20b": (24, 2880, 20914.8),
    "openai-community/gpt2": (12, 768, 124.4),
    "EleutherAI/pythia-160m": (12, 768, 162.3),
    "meta-llama/Llama-3.2-1B": (16, 2048, 1235.8),
    "google/gemma-2-2b": (26, 2304, 2614.3),
}


@pytest.fixture(autouse=True)
def _no_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))


def test_every_shape_is_tested():
    assert {str(f.parent.relative_to(SHAPES)) for f in SHAPES.rglob("*.json")} == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_sizes_are_those_of_the_model(name: str):
    layers, width, millions = PUBLISHED[name]
    lm = load_skeleton(name)
    assert (lm.info.n_layers, lm.info.width) == (layers, width)
    count = sum(p.numel() for p in lm.model.parameters()) / 1e6
    assert count == pytest.approx(millions, abs=0.06)
    for site in ("mlp_in", "mlp_out"):
        assert resolve(lm.model, f"{site}.{layers - 1}", lm.info)


def test_weights_still_come_from_the_hub_alone():
    for load in (load_model, read_info):
        with pytest.raises(
            ValueError, match=r"model.path=Qwen/Qwen3-4B: the hub cannot be reached"
        ):
            load("Qwen/Qwen3-4B")
    with pytest.raises(ValueError, match=r"Qwen/Qwen3-4B: .* at revision abc"):
        load_skeleton("Qwen/Qwen3-4B", "abc")  # an asked-for revision may be another model


@pytest.mark.parametrize("family", ["Qwen/Qwen3-30B-A3B", "openai/gpt-oss-20b"])
def test_a_mixture_writes_what_its_experts_make_together(family: str, tmp_path: Path):
    """The residual gains exactly mlp_out, the sum over experts, and mlp_in is what all of them read."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from dictlearn.lm.load import freeze

    config = AutoConfig.from_pretrained(SHAPES / family)
    sizes = {"hidden_size": 16, "intermediate_size": 8, "head_dim": 4, "num_hidden_layers": 2}
    more = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 50}
    for key, value in {**sizes, **more, "pad_token_id": 0}.items():
        setattr(config, key, value)
    if "moe_intermediate_size" in config.to_dict():
        config.moe_intermediate_size = 8
    config.layer_types = (config.to_dict().get("layer_types") or [])[:2] or None
    lm = freeze(AutoModelForCausalLM.from_config(config))
    names = ["resid_mid.1", "mlp_in.1", "mlp_out.1", "resid_post.1"]
    seen = capture(lm, torch.randint(50, (2, 6)), names)
    assert seen["mlp_out.1"].shape == seen["mlp_in.1"].shape == (2, 6, 16)
    torch.testing.assert_close(seen["resid_mid.1"] + seen["mlp_out.1"], seen["resid_post.1"])
