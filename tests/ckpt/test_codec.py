"""State comes back exactly as it was, or not at all."""

from __future__ import annotations

import enum
import json
import math
import os
import pickle
import random
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from ckpt_worker import differing
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from dictlearn.ckpt.codec import leaves, path_text, read_state, write_state
from dictlearn.ckpt.files import STORABLE, read_tensors, write_tensors


def round_trip(folder: Path, state: dict) -> dict:
    folder.mkdir(exist_ok=True)
    write_state(folder, state)
    return read_state(folder)


def test_every_type_comes_back_as_it_was(tmp_path):
    state = {
        "plain": [None, True, False, 0, -1, 2**70, 1.5, -0.0, 1e-320, "", "å\ud800\n", [], {}, ()],
        "non_finite": [math.nan, math.inf, -math.inf],
        "nested": {"a": ({"b": [(1, (2,))]},), "": {"c.d": 1}},
        "int keys": {0: "a", -3: {5: (None,)}},
        "mixed keys": {0: "int", "0": "string"},
        "dollars": {"$tensor": "not one", "$": 1, "plain": 2},
        "numpy": [np.arange(5, dtype=np.uint32), np.zeros((0, 3)), np.array(7), np.float64(0.1)],
        "numpy bool": np.array([True, False]),
        "numpy strided": np.arange(12).reshape(3, 4).T[::2],
        "tensor": torch.arange(6.0).view(2, 3),
        "scalar": torch.tensor(3, dtype=torch.int64),
        "empty": torch.zeros(0, 4),
        "bf16": torch.randn(5).bfloat16(),
        "__metadata__": torch.ones(1),
    }
    assert differing(state, round_trip(tmp_path, state)) == []


def test_ordered_dicts_come_back_as_dicts_in_their_order(tmp_path):
    back = round_trip(tmp_path, OrderedDict(b=1, a=2))
    assert list(back.items()) == [("b", 1), ("a", 2)] and type(back) is dict


@pytest.mark.parametrize("dtype", STORABLE, ids=str)
def test_every_dtype_and_layout_is_bit_exact_and_readable_by_safetensors(tmp_path, dtype):
    raw = torch.randint(0, 2 if dtype == torch.bool else 256, (64,), dtype=torch.uint8)
    tensor = raw.view(dtype).reshape(2, -1)
    tensors = {"plain": tensor, "strided": tensor.t(), "empty": tensor[:0], "scalar": tensor[0, 0]}
    write_tensors(tmp_path / "x", tensors)
    assert differing(tensors, read_tensors(tmp_path / "x")) == []
    assert differing(tensors, load_file(tmp_path / "x")) == []


def test_names_that_collide_stay_apart(tmp_path):
    state = {"a": {"b": torch.zeros(1)}, "a.b": torch.ones(1), "c": {0: torch.ones(2)}}
    state["c"]["0"] = torch.zeros(2)
    assert differing(state, round_trip(tmp_path, state)) == []


def test_shared_tensors_are_stored_once_and_stay_shared(tmp_path):
    tied = torch.randn(1000)
    back = round_trip(
        tmp_path, {"a": tied, "b": tied, "view": tied.view(10, 100), "part": tied[:5]}
    )
    assert back["a"] is back["b"]
    assert torch.equal(back["view"], tied.view(10, 100)) and torch.equal(back["part"], tied[:5])
    assert (tmp_path / "tensors.safetensors").stat().st_size < 2 * 4000 + 1000


def test_what_is_loaded_has_its_own_aligned_memory(tmp_path):
    back = round_trip(tmp_path, {"a": torch.zeros(3), "b": torch.zeros(3, dtype=torch.uint8)})
    (tmp_path / "tensors.safetensors").write_bytes(b"\xff" * 300)
    assert torch.equal(back["a"], torch.zeros(3))
    assert back["a"].data_ptr() % 64 == 0


def test_adam_resumes_from_its_state(tmp_path):
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(3)).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    back = round_trip(tmp_path, state)
    assert differing(state, back) == []
    assert set(back["state"]) == {0, 1}


Level = enum.IntEnum("Level", "HIGH")
loop: list = []
loop.append(loop)


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ({1}, r"a.b\[0\] is a builtins.set"),
        (b"bytes", r"a.b\[0\] is a builtins.bytes"),
        (Level.HIGH, r"a.b\[0\] is a .*Level"),
        (Path("x"), r"a.b\[0\] is a pathlib"),
        (torch.float32, r"a.b\[0\] is a torch.dtype"),
        (torch.Size([1]), r"a.b\[0\] is a torch.Size"),
        (Counter("a"), r"a.b\[0\] is a collections.Counter"),
        (lambda: 0, r"a.b\[0\] is a builtins.function"),
        ({1.5: 0}, r"a.b\[0\] has the key 1.5: want strings and ints"),
        ({True: 0}, r"a.b\[0\] has the key True: want strings and ints"),
        (torch.zeros(1, dtype=torch.complex64), r"a.b\[0\] is a torch.strided torch.complex64"),
        (torch.zeros(3).to_sparse(), r"a.b\[0\] is a torch.sparse_coo"),
        (torch.zeros(3, device="meta"), r"a.b\[0\] is a .* on meta"),
        (np.array(["a"]), r"a.b\[0\] is a numpy <U1"),
        (np.array([{}]), r"a.b\[0\] is a numpy object"),
        (np.array([1], dtype=">i4"), r"a.b\[0\] is a numpy >i4"),
        (loop, "nested more than 100 deep"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_anything_else_is_refused_by_its_place_in_the_tree(tmp_path, value, complaint):
    with pytest.raises(TypeError, match=complaint):
        write_state(tmp_path, {"a": {"b": [value]}})
    assert list(tmp_path.iterdir()) == []


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
trees = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner)
    ),
    max_leaves=20,
)


@given(tree=trees)
@settings(max_examples=60, deadline=None)
def test_any_tree_comes_back(tmp_path_factory, tree):
    folder = tmp_path_factory.mktemp("tree")
    back = round_trip(folder, {"tree": tree})
    assert repr(back["tree"]) == repr(tree)


def test_leaves_have_readable_paths():
    state = {"a": [1, {2: "x"}], "empty": {}}
    assert [path_text(path) for path, _ in leaves(state)] == ["a[0]", "a[1][2]", "empty"]


# What is not ours to read


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 5000 + "1" + "}" * 5000, "nested"),
        ('{"a":' * 150 + "1" + "}" * 150, "nested more than 100 deep"),
        ("", "not readable"),
        ('{"a": 1', "not readable"),
        ("\xff", "not readable"),
        ("[1]", "want an object at the top"),
        ('{"a": NaN}', "NaN is not JSON"),
        ('{"a": 1, "a": 2}', "same key twice"),
        ('{"a": ' + "1" * 5000 + "}", "not readable"),
        ('{"a": {"$pickle": "gASV"}}', r"a holds an unknown '\$pickle'"),
        ('{"a": {"$tuple": 3}}', r"a holds an unknown '\$tuple'"),
        ('{"a": {"$float": "1.0"}}', r"a holds an unknown '\$float'"),
        ('{"a": {"$float": ["nan"]}}', r"a holds an unknown '\$float'"),
        ('{"a": {"$tensor": ["t"]}}', r"a holds an unknown '\$tensor'"),
        ('{"a": {"$tensor": "t", "b": 1}}', "a mixes plain keys"),
        ('{"a": {"$items": [[1, 2, 3]]}}', r"a has an item that is no \[key, value\] pair"),
        ('{"a": {"$items": [[[], 1]]}}', r"a has an item that is no \[key, value\] pair"),
        ('{"a": {"$items": [[1, 1], [1, 2]]}}', "a has the key 1 twice"),
        ('{"a": {"$tensor": "../t"}}', r"a wants the tensor '../t', which is missing"),
        ('{"a": {"$scalar": "t"}}', r"a: a scalar of shape \[2\]"),
        ('{"a": {"$array": "h"}, "b": {"$tensor": "t"}}', "a: numpy has no torch.bfloat16"),
        ("{}", "the tensors 'h', 't' belong to no entry"),
    ],
    ids=lambda value: value[:24],
)
def test_a_hostile_state_is_a_value_error(tmp_path, text, complaint):
    tensors = {"t": torch.zeros(2), "h": torch.zeros(2).bfloat16()} if "{" in text else {}
    write_tensors(tmp_path / "tensors.safetensors", tensors)
    (tmp_path / "state.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=complaint) as caught:
        read_state(tmp_path)
    assert str(tmp_path / "state.json") in str(caught.value)


def test_a_missing_tensor_is_named(tmp_path):
    write_state(tmp_path, {"a": torch.zeros(1), "b": torch.zeros(1)})
    write_tensors(tmp_path / "tensors.safetensors", {"a": torch.zeros(1)})
    with pytest.raises(ValueError, match="b wants the tensor 'b', which is missing"):
        read_state(tmp_path)


def header(**entries: dict) -> bytes:
    raw = json.dumps(entries).encode()
    return len(raw).to_bytes(8, "little") + raw


F32 = {"dtype": "F32", "shape": [1]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 4,
        (2**63).to_bytes(8, "little") + b"{}",
        (2**27).to_bytes(8, "little") + b"{" * 1000,
        header(a={**F32, "data_offsets": [0, 4]}),  # no data
        header(a={**F32, "data_offsets": [0, 4]}, b={**F32, "data_offsets": [2, 6]}) + bytes(6),
        header(a={**F32, "data_offsets": [4, 8]}) + bytes(8),  # a gap
        header(a={**F32, "data_offsets": [0, 4]}) + bytes(8),  # more data than tensors
        header(a={"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 4]}) + bytes(4),
        header(a={"dtype": "OBJECT", "shape": [1], "data_offsets": [0, 4]}) + bytes(4),
    ],
    ids=range(10),
)
def test_a_hostile_tensor_file_is_a_value_error(tmp_path, data):
    path = tmp_path / "tensors.safetensors"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="is not a readable safetensors file"):
        read_tensors(path)


def test_random_damage_to_a_tensor_file_never_crashes(tmp_path):
    path = tmp_path / "tensors.safetensors"
    write_tensors(path, {name: torch.randn(3, 4) for name in "abcde"})
    whole = path.read_bytes()
    for seed in range(200):
        dice = random.Random(seed)
        data = bytearray(whole[: dice.randrange(8, len(whole) + 1)])
        for _ in range(dice.randrange(3)):
            data[dice.randrange(min(len(data), 300))] = dice.randrange(256)
        path.write_bytes(data)
        try:
            read_tensors(path)
        except ValueError as error:
            assert "is not a readable safetensors file" in str(error)


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mknod, (str(self.marker),)


@pytest.mark.parametrize("save", [pickle.dumps, torch.save], ids=["pickle", "torch"])
def test_a_pickle_under_our_name_is_never_unpickled(tmp_path, save):
    marker, path = tmp_path / "marker", tmp_path / "tensors.safetensors"
    if save is pickle.dumps:
        path.write_bytes(pickle.dumps(Bomb(marker)))
    else:
        torch.save(Bomb(marker), path)
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a readable safetensors file"):
        read_state(tmp_path)
    assert not marker.exists()
