"""Published dictionaries in their own layouts: what each computes is worked out by hand."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import dictlearn
from dictlearn.ckpt.files import read_tensors, write_tensors
from dictlearn.dicts.dictionary import Dictionary
from tests.ckpt.foreign import released as of
from tests.ckpt.foreign.released import JUMP, RELU, TOP1, W_DEC, X
from tests.pretend_hub import empty_cache


def check(dictionary: Dictionary, expected: tuple[list, list], x: torch.Tensor = X) -> None:
    code, y = (torch.tensor(numbers, dtype=torch.float) for numbers in expected)
    torch.testing.assert_close(dictionary.encode(x).dense(), code)
    torch.testing.assert_close(dictionary(x), y)


HEADS = "model.layers.12.self_attn.o_proj:input"


@pytest.mark.parametrize(
    ("inner", "sites", "model"),
    [
        ("gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82", "resid_post.12", "2b"),
        ("gemma-scope-9b-it-res/layer_12/width_16k/average_l0_88", "resid_post.12", "9b-it"),
        ("gemma-scope-9b-pt-mlp/layer_12/width_16k/average_l0_9", "mlp_out.12", "9b"),
        ("gemma-scope-2b-pt-att/layer_12/width_16k/average_l0_9", HEADS, "2b"),
        (
            "gemma-scope-2b-pt-transcoders/layer_12/width_16k/average_l0_6",
            "mlp_norm.12 mlp_out.12",
            "2b",
        ),
        (
            "models--google--gemma-scope-27b-pt-res/snapshots/0/layer_12/width_131k/average_l0_8",
            "resid_post.12",
            "27b",
        ),
    ],
)
def test_gemma_scope(inner, sites, model, tmp_path):
    dictionary = dictlearn.load(of.scope(tmp_path, inner))
    check(dictionary, JUMP)
    assert (*dictionary.sources, *dictionary.targets) == (*sites.split(), *sites.split())[-2:]
    assert dictionary.provenance == {"format": "gemma_scope", "model": f"google/gemma-2-{model}"}


def test_gemma_scope_of_embeddings_reads_them_multiplied(tmp_path):
    folder = of.scope(tmp_path, "gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6")
    dictionary = dictlearn.load(folder)
    root = 2**0.5
    y = [[root * value for value in row] for row in JUMP[1]]
    check(dictionary, (JUMP[0], y), root * X)
    assert dictionary.sources == ("resid_pre.0",)


def test_gemma_scope_elsewhere_has_no_site(tmp_path):
    dictionary = dictlearn.load(of.scope(tmp_path, "some/folder"))
    assert dictionary.sources == ("unknown:output",) and dictionary.provenance["model"] is None


@pytest.mark.parametrize(
    ("inner", "config", "sites"),
    [
        ("resid_post/layer_22_width_65k_l0_medium", None, "resid_post.22"),
        ("mlp_out_all/layer_5_width_16k_l0_small", None, "mlp_out.5"),
        ("attn_out/layer_12_width_16k_l0_small", None, HEADS),
        ("transcoder/layer_9_width_16k_l0_small", None, "mlp_in.9 mlp_out.9"),
        ("x", {"hf_hook_point_in": "model.layers.3.output"}, "resid_post.3"),
        (
            "x",
            {
                "hf_hook_point_in": "model.layers.3.pre_feedforward_layernorm.output",
                "hf_hook_point_out": "model.layers.3.post_feedforward_layernorm.output",
            },
            "mlp_in.3 mlp_out.3",
        ),
        ("x", {"hf_hook_point_in": "model.layers.12.self_attn.o_proj.input"}, HEADS),
        ("x", None, "unknown:output"),
    ],
)
def test_gemma_scope_2(inner, config, sites, tmp_path):
    about = {"model_name": "gemma-v3-1b-pt", "architecture": "jump_relu", "l0": 60, "type": "sae"}
    config = None if config is None else about | config
    dictionary = dictlearn.load(of.scope_2(tmp_path, f"gemma-scope-2-1b-pt/{inner}", config))
    check(dictionary, JUMP)
    assert (*dictionary.sources, *dictionary.targets) == (*sites.split(), *sites.split())[-2:]
    assert dictionary.provenance == {"format": "gemma_scope_2", "model": "google/gemma-3-1b-pt"}


def test_gemma_scope_2_transcoder_with_a_skip(tmp_path):
    inner = "gemma-scope-2-270m-pt/transcoder_all/layer_9_width_16k_l0_small_affine"
    dictionary = dictlearn.load(of.scope_2(tmp_path, inner, affine_skip_connection=of.SKIP))
    check(dictionary, (JUMP[0], [[1.75, 0.75], [5.25, 2.25]]))  # the first input on the second
    assert dictionary.provenance["model"] == "google/gemma-3-270m"


def test_gemma_scope_2_clt(tmp_path):
    inner = "gemma-scope-2-1b-pt/clt/width_262k_l0_medium_affine"
    folder = of.scope_2_layers(tmp_path, inner, affine_skip_connection=of.SKIP)
    dictionary = dictlearn.load(folder)
    assert dictionary.kind == "clt" and dictionary.shape.skip
    assert dictionary.sources == ("mlp_in.0", "mlp_in.1")
    assert dictionary.targets == ("mlp_out.0", "mlp_out.1")
    x = torch.tensor([[[1.0, 0.5], [2, 1.5]]])  # a token: the first layer reads [1, 0.5]
    code = dictionary.encode(x)
    assert code.dense().tolist() == [[[1.5, 0, 0], [2.5, 3, 2.5]]]
    # Layer 0: 1.5 [1, 0]. Layer 1: 2 x 1.5 [1, 0] + [5, 0.5]. Each + its bias + its skip.
    assert dictionary.decode(code, x).tolist() == [[[1.75, 0.75], [8.25, 2.25]]]


def test_gemma_scope_2_crosscoder(tmp_path):
    inner = "gemma-scope-2-1b-it/crosscoder/layer_7_13_width_262k_l0_medium"
    dictionary = dictlearn.load(of.scope_2_layers(tmp_path, inner))
    assert dictionary.sources == dictionary.targets == ("resid_post.7", "resid_post.13")
    assert dictionary.kind == "crosscoder" and dictionary.provenance["model"].endswith("1b-it")
    x = torch.tensor([[[1.0, 0.5], [2, 1.5]]])
    assert dictionary(x).tolist() == [[[1.75, -0.25], [8.25, 0.25]]]


def test_gemma_scope_2_layers_that_write_backwards_are_refused(tmp_path):
    folder = of.scope_2_layers(tmp_path, "clt/width_262k_l0_medium")
    path = folder / "params_layer_1.safetensors"
    write_tensors(path, read_tensors(path) | {"w_dec": torch.stack([W_DEC, W_DEC], 1)})
    with pytest.raises(ValueError, match=r"params_layer_1.*writes? to layers before their own"):
        dictlearn.load(folder)


@pytest.mark.parametrize(
    ("inner", "says"),
    [
        ("somewhere", "want a folder in clt/ or crosscoder/"),
        ("crosscoder/mine", "its name doesn't list the layers"),
        ("crosscoder/layer_7_13_17_width_1k_l0_big", "has files of 2 layers"),
    ],
)
def test_gemma_scope_2_layers_without_a_name_are_refused(inner, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        dictlearn.load(of.scope_2_layers(tmp_path, inner))


def test_qwen_scope(tmp_path):
    dictionary = dictlearn.load(of.qwen(tmp_path) / "layer12.sae.pt")
    check(dictionary, TOP1)
    assert dictionary.sources == ("resid_post.12",) and dictionary.shape.k == 1
    assert dictionary.provenance == {"format": "qwen_scope", "model": "Qwen/Qwen3-1.7B-Base"}


def test_qwen_scope_layers_of_a_folder_are_one_dictionary(tmp_path):
    dictionary = dictlearn.load(of.qwen(tmp_path, layers=(10, 9)))
    assert dictionary.sources == ("resid_post.9", "resid_post.10")


def test_qwen_scope_without_its_name_has_no_k(tmp_path):
    with pytest.raises(ValueError, match="k is not in the file; want a folder with the"):
        dictlearn.load(of.qwen(tmp_path, "mine"))


def test_goodfire(tmp_path):
    dictionary = dictlearn.load(of.goodfire(tmp_path))
    check(dictionary, RELU)
    assert dictionary.sources == ("resid_post.19",)
    model = "meta-llama/Llama-3.1-8B-Instruct"
    assert dictionary.provenance == {"format": "goodfire", "model": model}
    of.goodfire(tmp_path, "Llama-3.3-70B-Instruct-SAE-l50.pt")
    with pytest.raises(ValueError, match=r"holds 2 dictionaries; name one of Llama-3\.1"):
        dictlearn.load(tmp_path)
    assert dictlearn.load(tmp_path / "Llama-3.3-70B-Instruct-SAE-l50.pt").sources == (
        "resid_post.50",
    )


@pytest.mark.parametrize(
    ("inner", "site"),
    [
        ("ESMC-6B-sae-k64-codebook16384", "resid_pre.60"),
        ("ESMC-6B-sae-mlp-k64-codebook16384", "mlp_out.60"),
    ],
)
def test_esmc(inner, site, tmp_path):
    """Less b_dec, X is [0.75, 0.75] and [1.75, 1.75]; the second feature reads twice 0.75, and 1.75."""
    dictionary = dictlearn.load(of.esmc(tmp_path, inner) / "layer_60.safetensors")
    # The second and the third feature are equal, and the first of them is taken.
    check(dictionary, ([[0, 1.5, 0], [0, 3.5, 0]], [[0.25, 1.25], [0.25, 3.25]]))
    assert dictionary.sources == dictionary.targets == (f"{site}:standardised",)
    assert dictionary.provenance == {"format": "esmc", "model": "biohub/ESMC-6B"}
    of.esmc(tmp_path, "several", layers=(80, 60))
    assert dictlearn.load(tmp_path / "several").sources[1] == "resid_pre.80:standardised"


def test_llama_scope_scales_and_compares_with_decoder_norms(tmp_path):
    """sqrt(2) / norm is 1/2 of the input and 1/4 of the output.

    Pre-activations of X / 2: [1, 0.5, -0.25] and [1.5, 1.5, 0.75]. The threshold is 0.5 / 4 of h
    times the decoder norms 1, 1 and sqrt(2), so all that are positive fire. Outputs are times 4.
    """
    dictionary = dictlearn.load(of.llama_scope(tmp_path))
    # 4 (1 [1, 0] + 0.5 [0, 1] + b) and 4 (1.5 [1, 0] + 1.5 [0, 1] + 0.75 [1, -1] + b)
    check(dictionary, ([[1, 0.5, 0], [1.5, 1.5, 0.75]], [[5, 1], [10, 2]]))
    assert dictionary.sources == ("mlp_norm.15",) and dictionary.targets == ("mlp_out.15",)
    told = {"format": "llama_scope", "model": "meta-llama/Llama-3.1-8B"}
    assert dictionary.provenance == told | {"input_scale": 0.5, "output_scale": 0.25}
    # 4 / 4 = 1: a pre-activation of 1 is not above it, and 0.75 sqrt(2) is.
    high = dictlearn.load(of.llama_scope(tmp_path, "high", jump_relu_threshold=4))
    check(high, ([[0, 0, 0], [1.5, 1.5, 0.75]], [[1, -1], [10, 2]]))


def test_openmoss_thresholds_are_in_units_of_training(tmp_path):
    dictionary = dictlearn.load(of.openmoss(tmp_path, norm=2**0.5))  # a scale of 1
    check(dictionary, JUMP)
    assert dictionary.sources == dictionary.targets == ("resid_post.15",)
    assert dictionary.provenance["model"] == "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"
    twice = dictlearn.load(of.openmoss(tmp_path, "x", norm=2 * 2**0.5))
    check(twice, (JUMP[0], [[2 * v for v in row] for row in JUMP[1]]), 2 * X)


def test_openmoss_topk_of_later_versions_compares_what_features_write(tmp_path):
    tensors = {"W_E": of.W_ENC.T.contiguous(), "b_E": of.B_ENC, "W_D": W_DEC, "b_D": of.B_DEC}
    folder = of.openmoss(
        tmp_path,
        tensors=tensors,
        act_fn="topk",
        top_k=1,
        norm_activation="inference",
        sparsity_include_decoder_norm=True,
    )
    # 2.5 sqrt(2) of the third feature is more than the 3 of the second.
    root = 2**0.5
    code = [[1.5, 0, 0], [0, 0, 2.5 * root]]
    check(dictlearn.load(folder), (code, [[1.75, -0.25], [2.75, -2.75]]))


@pytest.mark.parametrize(
    ("cfg", "says"),
    [
        ({"act_fn": "batchtopk"}, "act_fn='batchtopk'; want relu, topk, jumprelu"),
        ({"use_glu_encoder": True}, "its encoder is not linear"),
        ({"norm_activation": "token-wise"}, "depends on each token"),
        ({"norm": 0.0}, "norm is 0.0 for 'blocks.15.hook_resid_post'; want a positive"),
        ({"sae_type": "lorsa"}, "sae_type='lorsa'; want sae"),
        ({"tensors": of.linear()}, "there is no threshold for its 3 features"),
        ({"tensors": {"W_E": of.W_ENC}}, "want tensors W_E, b_E, W_D, maybe b_D; found W_E"),
    ],
    ids=str,
)
def test_what_openmoss_can_say_and_we_cannot_is_refused(cfg, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        dictlearn.load(of.openmoss(tmp_path, **cfg))


# --- hostile files ------------------------------------------------------------------------------


def test_an_npz_with_a_pickle_or_a_false_size_is_refused(tmp_path):
    folder = of.scope(tmp_path)
    np.savez(folder / "params.npz", W_enc=np.array([{"a": 1}], dtype=object))
    with pytest.raises(
        ValueError, match=r"params.npz: is not a readable npz file: .*object values"
    ):
        dictlearn.load(folder)
    with zipfile.ZipFile(folder / "params.npz", "w") as file:
        header = "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999, 99999999), }"
        raw = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
        file.writestr("W_enc.npy", raw + b"\0" * 8)
    with pytest.raises(ValueError, match=r"says shape \[99999999, 99999999\] and holds 8 bytes"):
        dictlearn.load(folder)
    with zipfile.ZipFile(folder / "params.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("W_enc.npy", b"\0" * 100_000)
    with pytest.raises(ValueError, match="it unpacks to more than 8 times its size"):
        dictlearn.load(folder)


class Trap:
    def __reduce__(self):
        return (open, ("trapped", "w"))


@pytest.mark.parametrize("make", [of.qwen, of.goodfire])
def test_a_pickle_runs_nothing(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = make(tmp_path / "d")
    torch.save({"W_enc": Trap()}, next(folder.iterdir()))
    with pytest.raises(ValueError, match="is not a readable file of tensors"):
        dictlearn.load(folder)
    assert not (tmp_path / "trapped").exists()


# --- sets that list their files -------------------------------------------------------------------

LISTING = {
    "model_name": "google/gemma-2-2b",
    "model_kind": "transcoder_set",
    "feature_input_hook": "ln2.hook_normalized",
    "feature_output_hook": "hook_mlp_out",
}


def listing(folder: Path, entries: object, **more: object) -> Path:
    folder.mkdir(exist_ok=True)
    text = yaml.safe_dump({**LISTING, **more, "transcoders": entries})
    (folder / "config.yaml").write_text(text)
    return folder


@pytest.fixture
def hub(monkeypatch, tmp_path) -> list[tuple[str, str, str | None]]:
    """The files of repositories that a list names, and what was asked for."""
    asked = []

    def download(repository, name, revision=None, local_files_only=False, **_):
        asked.append((repository, name, revision))
        return str(tmp_path / repository / name)

    monkeypatch.setattr("dictlearn.ckpt.foreign._hub.hf_hub_download", download)
    return asked


def test_a_set_of_gemma_scope_transcoders(hub, tmp_path):
    inner = [f"layer_{i}/width_16k/average_l0_{6 + i}" for i in range(2)]
    for place in inner:
        of.scope(tmp_path / "google", f"gemma-scope-2b-pt-transcoders/{place}")
    names = [f"hf://google/gemma-scope-2b-pt-transcoders/{place}/params.npz" for place in inner]
    names[1] += "?revision=v1"
    dictionary = dictlearn.load(listing(tmp_path / "set", names))
    assert dictionary.sources == ("mlp_norm.0", "mlp_norm.1") and dictionary.kind == "plt"
    assert dictionary.targets == ("mlp_out.0", "mlp_out.1")
    assert dictionary.provenance == {"format": "circuit_tracer", "model": "google/gemma-2-2b"}
    x = X[:, None].expand(-1, 2, -1).contiguous()
    assert dictionary(x)[:, 1].tolist() == JUMP[1] and dictionary(x)[:, 0].tolist() == JUMP[1]
    assert [revision for _, _, revision in hub] == [None, "v1"]


def test_a_clt_whose_list_ends_with_its_last_file_twice(hub, tmp_path):
    of.scope_2_layers(tmp_path / "google" / "gemma-scope-2-1b-pt", "clt/w")
    names = [
        f"hf://google/gemma-scope-2-1b-pt/clt/w/params_layer_{i}.safetensors" for i in (0, 1, 1)
    ]
    hooks = {"feature_input_hook": "mlp.hook_in", "model_kind": "cross_layer_transcoder"}
    dictionary = dictlearn.load(listing(tmp_path / "set", names, **hooks))
    assert dictionary.sources == ("mlp_in.0", "mlp_in.1") and dictionary.reads(1) == range(2)
    x = torch.tensor([[[1.0, 0.5], [2, 1.5]]])
    assert dictionary(x).tolist() == [[[1.75, -0.25], [8.25, 0.25]]]


@pytest.mark.parametrize(
    "entry",
    [
        "/etc/passwd.npz",
        "../x.npz",
        "hf://a/b/../../x.npz",
        "hf://a/b/model.bin",
        "https://x/y.npz",
        3,
    ],
)
def test_a_list_leads_nowhere_else(hub, entry, tmp_path):
    with pytest.raises(ValueError, match=r"config.yaml: transcoders lists .*; want hf://<owner>"):
        dictlearn.load(listing(tmp_path, [entry]))
    assert not hub


def test_a_listed_file_that_is_out_of_reach_says_what_to_fetch(tmp_path, monkeypatch):
    empty_cache(tmp_path / "cache", monkeypatch)
    with pytest.raises(ValueError) as error:
        dictlearn.load(listing(tmp_path, ["hf://google/nowhere-here/layer_0/params.npz"]))
    assert "`hf download google/nowhere-here layer_0/params.npz`" in str(error.value)
