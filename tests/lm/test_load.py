"""Loading: frozen models, honest facts about them, and one sentence for everything that is amiss."""

from __future__ import annotations

import inspect
import io
import json
import logging
import textwrap
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

from dictlearn.lm.capture import capture
from dictlearn.lm.language_model import document_start, pad_id
from dictlearn.lm.load import PICO_PATH, bos_id, freeze, load_model, load_skeleton, read_info

WORDS = ["[PAD]", "[UNK]", "the", "cat", "sat", "on", "mat", "<s>", "</s>", "<think>"]

QWEN3: dict[str, Any] = {
    "vocab_size": 16,  # six rows more than there are words
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 32,
    "tie_word_embeddings": True,
    "attention_dropout": 0.5,
}


def _tokenizer(**specials: str) -> transformers.PreTrainedTokenizerFast:
    words = {word: i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    tokenizer.add_tokens(["<think>"])  # added, not special: text like any other
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **specials)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model in the hub's layout, its weights in bfloat16 as most are."""
    folder = tmp_path / "tiny"
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3", **QWEN3))
    model.to(torch.bfloat16).save_pretrained(folder)
    _tokenizer(pad_token="[PAD]", bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    return folder


def _edit(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_a_loaded_model_is_frozen(folder):
    lm = load_model(str(folder))
    assert not any(module.training for module in lm.model.modules())
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())
    tokens = torch.arange(12).view(2, 6)
    assert torch.equal(lm.logits(tokens), lm.logits(tokens))  # attention_dropout=0.5 is asleep
    assert lm.logits(tokens).shape == (2, 6, 16)
    assert lm.model(tokens).past_key_values is None


def test_weights_arrive_as_they_are_on_disk(folder):
    stored = load_file(folder / "model.safetensors")
    lm = load_model(str(folder))
    weights = lm.model.state_dict()
    assert all(torch.equal(weights[name], tensor.float()) for name, tensor in stored.items())


@pytest.mark.parametrize(
    ("dtype", "want"),
    [("auto", torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16)],
)
def test_dtype_is_what_was_asked_for(folder, dtype, want):
    lm = load_model(str(folder), dtype=dtype)
    assert {parameter.dtype for parameter in lm.model.parameters()} == {want}
    assert lm.device == torch.device("cpu")
    assert capture(lm, torch.arange(6).view(1, 6), ["mlp_out.1"])["mlp_out.1"].dtype == want


def test_attention_implementations_agree(folder):
    tokens = torch.arange(12).view(2, 6)
    auto, eager = (load_model(str(folder), attn=attn) for attn in ("auto", "eager"))
    assert auto.model.config._attn_implementation == "sdpa"
    torch.testing.assert_close(auto.logits(tokens), eager.logits(tokens))


def test_special_ids_are_specials_and_rows_without_a_token(folder):
    lm = load_model(str(folder))
    special = {WORDS.index(word) for word in ("[PAD]", "<s>", "</s>")}
    assert lm.special_ids == special | set(range(len(WORDS), 16))
    assert WORDS.index("<think>") not in lm.special_ids
    assert bos_id(lm) == WORDS.index("<s>")


def test_invented_ids_of_a_config_are_nobodys_specials(folder):
    _edit(folder, bos_token_id=2, eos_token_id=3, pad_token_id=4)
    assert not load_model(str(folder)).special_ids & {2, 3, 4}


def test_more_tokens_than_the_embedding_has_rows(folder):
    """Words of text may not be among them; a special token is never text, and is then not used."""
    tokenizer = _tokenizer(bos_token="<s>", eos_token="</s>")
    tokenizer.add_tokens([f"word {i}" for i in range(16 - len(WORDS))])
    tokenizer.add_special_tokens({"pad_token": "[MORE]"})
    tokenizer.save_pretrained(folder)
    lm = load_model(str(folder))
    assert lm.tokenizer is not None and lm.tokenizer.pad_token_id == 16
    assert pad_id(lm) == WORDS.index("</s>") and document_start(lm) == WORDS.index("<s>")
    tokenizer.add_tokens(["one word more"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError) as error:
        load_model(str(folder))
    assert str(error.value) == (
        f"model.path={folder}: its tokenizer has ids up to 17 ('one word more'), its embedding 16 "
        f"rows; want the tokenizer that the model was trained with, or a model resized for this one"
    )


def test_without_a_bos_there_is_none_and_cls_will_do(folder):
    _tokenizer(eos_token="</s>").save_pretrained(folder)
    assert bos_id(load_model(str(folder))) is None
    _tokenizer(cls_token="<s>").save_pretrained(folder)
    assert bos_id(load_model(str(folder))) == WORDS.index("<s>")


def test_a_folder_without_a_tokenizer_falls_back_on_the_config(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    _edit(folder, bos_token_id=5, eos_token_id=[6, 7], pad_token_id=None)
    lm = load_model(str(folder))
    assert lm.tokenizer is None and bos_id(lm) is None
    assert lm.special_ids == {5, 6, 7}


def test_info_is_read_without_weights(folder):
    info = load_model(str(folder)).info
    (folder / "model.safetensors").unlink()
    assert read_info(str(folder)) == info
    assert (info.name, info.revision, info.family) == (str(folder), None, "qwen3")
    assert (info.n_layers, info.width, info.vocab_size, info.context_length) == (2, 16, 16, 32)


def test_info_knows_every_familys_names_for_things(example):
    info = example.lm.info
    assert (info.n_layers, info.width) == (3, 16)
    if example.name != "vit":
        assert (info.vocab_size, info.context_length) == (64, 32)


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta", "mpnet", "esm"])
def test_as_many_tokens_are_read_as_there_are_positions(family):
    """RoBERTa states 514 and reads 512: its positions are counted from behind the padding's id."""
    size = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
    }
    config = AutoConfig.for_model(
        family, vocab_size=16, max_position_embeddings=34, pad_token_id=1, **size
    )
    lm = freeze(AutoModel.from_config(config))
    assert lm.info.context_length == 32
    tokens = torch.full((1, 33), 5)
    assert lm.model(tokens[:, :32]).last_hidden_state.shape == (1, 32, 8)
    with pytest.raises((IndexError, RuntimeError)):
        lm.model(tokens)


def test_sharded_weights_load(folder):
    whole = load_model(str(folder))
    (folder / "model.safetensors").unlink()
    whole.model.save_pretrained(folder, max_shard_size="4KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    tokens = torch.arange(6).view(1, 6)
    assert torch.equal(load_model(str(folder)).logits(tokens), whole.logits(tokens))


def test_an_encoder_loads_without_its_head(tmp_path):
    size = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 4}
    config = AutoConfig.for_model("bert", vocab_size=32, intermediate_size=24, **size)
    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path)
    lm = load_model(str(tmp_path))
    assert type(lm.model).__name__ == "BertModel"
    at = capture(lm, torch.arange(6).view(1, 6), ["mlp_out.1"])
    assert at["mlp_out.1"].shape == (1, 6, 16)


def test_the_language_half_of_a_model_that_sees(tmp_path):
    text = {**QWEN3, "vocab_size": 64, "num_hidden_layers": 3, "tie_word_embeddings": False}
    vision = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 5,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
    }
    config = AutoConfig.for_model(
        "gemma3", text_config=text, vision_config=vision, mm_tokens_per_image=4
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    lm = load_model(str(tmp_path))
    assert (lm.info.family, lm.info.n_layers, lm.info.width) == ("gemma3_text", 3, 16)
    tokens = torch.arange(6).view(1, 6)
    post = capture(lm, tokens, ["resid_post.2"])["resid_post.2"]
    norm, head = lm.trunk.get_submodule("norm"), lm.model.get_submodule("lm_head")
    torch.testing.assert_close(head(norm(post)), lm.logits(tokens), rtol=1e-4, atol=1e-4)


def test_a_model_in_memory_needs_no_folder():
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3", **QWEN3))
    assert model.training
    lm = freeze(model, _tokenizer(bos_token="<s>"), name="mine")
    assert lm.info.name == "mine" and not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("family", ["granite", "bloom"])
def test_a_family_whose_sites_do_not_add_up_is_warned_of(tmp_path, family):
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}
    more: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    if family == "granite":
        more |= {"residual_multiplier": 0.25, "intermediate_size": 24}
    config = AutoConfig.for_model(family, **size, **more)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=f"family {family} .*resid_mid \\+ mlp_out is .*% off"):
        load_model(str(tmp_path))


# --- what can be amiss -------------------------------------------------------------------------


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _broken_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "qw')


def _wrong_config(folder: Path) -> None:
    (folder / "config.json").write_text('["qwen3"]')


def _unknown_type(folder: Path) -> None:
    _edit(folder, model_type="qwen99")


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _truncated(folder: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])


def _incomplete(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _other_shape(folder: Path) -> None:
    _edit(folder, intermediate_size=32)


def _lost_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00002-of-00002.safetensors")
    index = {
        "metadata": {},
        "weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _index(folder: Path, place: str) -> None:
    """Moves the weights to `place`, of which the index tells; and puts another file beside it."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if place.endswith(".bin"):
        torch.save(tensors, folder / place)
    else:
        save_file(tensors, folder / place, metadata={"format": "pt"})
    save_file({"z": torch.ones(1)}, folder / "decoy.safetensors", metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, place)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _pickle_in_the_index(folder: Path) -> None:
    _index(folder, "w.bin")


def _index_that_leaves(folder: Path) -> None:
    _index(folder, "../outside.safetensors")


def _no_index(folder: Path) -> None:
    _index(folder, "parts.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": ["parts.safetensors"]}')


def _weights_elsewhere(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    _edit(folder, transformers_weights="../outside.safetensors")


def _pickled_adapter(folder: Path) -> None:
    _edit(folder, transformers_weights="adapter_model.bin")


def _adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "/somewhere/else"}')


def _odd_name(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "weights.safetensors")


def _tokenizer_elsewhere(folder: Path) -> None:
    (folder.parent / "secret.txt").write_text("swordfish\n")
    config = {"vocab_file": "../secret.txt", "tokenizer_file": None, "old_file": "/nowhere/old"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def _broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": "1.0", "mod')


def _foreign_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "Nonsense"}}')


def _settings_of_generation(folder: Path, said: str) -> None:
    (folder / "generation_config.json").write_text(said)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_no_config, "no config.json in .*want a folder in the hub's layout"),
        (_broken_config, "config.json is not valid JSON"),
        (_wrong_config, "config.json holds no JSON object"),
        (_unknown_type, "has no model_type 'qwen99'"),
        (_pickled, r"its weights are pickled \(pytorch_model\.bin\).*want \*\.safetensors"),
        (_no_weights, r"no \*\.safetensors in"),
        (_truncated, "cannot be loaded: .*incomplete"),
        (_incomplete, r"lack 1 of the tensors .*, model\.layers\.1\.mlp\.up_proj\.weight for one"),
        (_other_shape, "cannot be loaded: .*mismatch"),
        (
            _lost_shard,
            r"no model-00001-of-00002\.safetensors in .*a part of the weights is missing",
        ),
        (_pickle_in_the_index, r"index\.json says that model\..* is in 'w\.bin'; want the name of"),
        (_index_that_leaves, r"is in '\.\./outside\.safetensors'; want the name of a"),
        (_no_index, r"no index of weights; want metadata and a weight_map"),
        (_weights_elsewhere, r"transformers_weights='\.\./outside\.safetensors'; want the name"),
        (_pickled_adapter, r"transformers_weights='adapter_model\.bin'; want the name"),
        (_adapter, r"holds an adapter \(adapter_config\.json\)"),
        (_odd_name, r"has neither model\.safetensors nor model\.safetensors\.index\.json"),
        (_tokenizer_elsewhere, r"tokenizer_config\.json says vocab_file='\.\./secret\.txt'"),
        (_broken_tokenizer, "tokenizer.json is not valid JSON"),
        (_foreign_tokenizer, "its tokenizer cannot be read: "),
        (
            partial(_settings_of_generation, said="7"),
            "generation_config.json holds no JSON object",
        ),
        (
            partial(_settings_of_generation, said='{"suppress_tokens": 5}'),
            "cannot be loaded: .*not iterable",
        ),
    ],
)
def test_a_damaged_folder_gets_one_sentence(folder, damage, says, monkeypatch):
    damage(folder)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was opened"))
    with pytest.raises(ValueError, match=says) as caught:
        load_model(str(folder))
    sentence = str(caught.value)
    assert sentence.startswith(f"model.path={folder}: ") and "\n" not in sentence


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (
            {"num_hidden_layers": 1 << 30, "layer_types": None},
            r"num_hidden_layers=1073741824; .* at most 4,096$",
        ),
        ({"vocab_size": 1 << 30}, r"vocab_size=1073741824; .* at most 16,777,216$"),
        ({"hidden_act": "loud"}, "config.json describes no model: "),
        ({"vocab_size": 8}, "its tokenizer has ids up to"),
    ],
    ids=str,
)
def test_sizes_of_nonsense_are_refused_where_no_weights_are_looked_at(folder, changed, says):
    _edit(folder, **changed)
    with pytest.raises(ValueError, match=says) as caught:
        load_skeleton(str(folder), tokenizer=True)
    assert str(caught.value).startswith(f"model.path={folder}: ")


def test_what_transformers_says_of_a_file_gives_a_terminal_no_orders():
    said = io.StringIO()
    filters = [
        one for handler in logging.getLogger("transformers").handlers for one in handler.filters
    ]
    handler = logging.StreamHandler(said)
    handler.addFilter(filters[0])
    handler.handle(logging.LogRecord("transformers", 30, "", 1, "no %s", ("\x1b[31m",), None))
    assert said.getvalue() == "no \\x1b[31m\n"


def test_a_folder_without_weights_is_refused_before_its_text_is_read(folder):
    _no_weights(folder)
    assert load_skeleton(str(folder)).tokenizer is None
    with pytest.raises(ValueError, match=r"no \*\.safetensors in"):
        load_skeleton(str(folder), tokenizer=True)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"device": "gpu"}, "model.device=gpu: want auto, cpu, cuda, cuda:N or mps"),
        ({"device": "meta"}, "model.device=meta: want auto, cpu"),
        ({"dtype": "float8"}, "model.dtype=float8: want auto, float32 or bfloat16"),
        (
            {"attn": "kernels-community/x"},
            "model.attn=kernels-community/x: want one of auto, eager",
        ),
    ],
)
def test_an_option_that_is_not_there_is_named(folder, options, says):
    with pytest.raises(ValueError, match=f"^{says}"):
        load_model(str(folder), **options)


def test_cuda_asked_for_and_absent(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    says = r"^model\.device=cuda: no CUDA device here; use model\.device=cpu$"
    with pytest.raises(ValueError, match=says):
        load_model(str(folder), device="cuda")
    assert load_model(str(folder), device="auto").device.type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=r"cuda:2: the CUDA devices here are cuda:0 to cuda:1$"):
        load_model(str(folder), device="cuda:2")


def test_code_that_comes_with_a_model_is_never_run(folder):
    ran = folder / "ran"
    for name in ("configuration_evil.py", "modeling_evil.py"):
        (folder / name).write_text(f"open({str(ran)!r}, 'w')\nclass Evil: ...\n")
    auto_map = {
        "AutoConfig": "configuration_evil.Evil",
        "AutoModelForCausalLM": "modeling_evil.Evil",
    }
    _edit(folder, auto_map=auto_map)
    load_model(str(folder))  # a model_type that transformers has: its code, not theirs
    _edit(folder, model_type="evil", architectures=["EvilForCausalLM"])
    with pytest.raises(ValueError, match="no model_type 'evil', and code that comes .* is not run"):
        load_model(str(folder))
    assert not ran.exists()


def test_pico_is_what_it_should_be():
    lm = load_model("pico")
    assert (lm.info.name, lm.info.family, lm.info.n_layers) == ("pico", "qwen3", 4)
    assert lm.info.context_length == 512 and lm.tokenizer is not None
    assert bos_id(lm) not in (None, 0)
    assert bos_id(lm) in lm.special_ids and 0 < len(lm.special_ids) < 100
    assert (PICO_PATH / "model.safetensors").stat().st_size < 8e6
    ids = lm.tokenizer(inspect.getsource(textwrap)[:1000])["input_ids"]
    assert not lm.special_ids & set(ids)
    with torch.no_grad():
        logits = lm.logits(torch.tensor([[bos_id(lm), *ids[:-1]]]))[0]
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(ids))
    assert loss < 7.0, "nats per token, of which a uniform guess has 8.3"
