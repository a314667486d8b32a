"""Plain arrays in files: what is mapped, what is refused, and how rows of several files join."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dictlearn.activations import arrays
from dictlearn.activations.arrays import Array, fingerprint, open_arrays

X = np.arange(60, dtype=np.float32).reshape(20, 3)


def assert_rows(array: Array, wanted: np.ndarray) -> None:
    assert array.shape == wanted.shape
    got = array.rows(0, len(wanted)).float()
    torch.testing.assert_close(got, torch.from_numpy(np.ascontiguousarray(wanted)).float())


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_is_mapped(tmp_path, dtype, order):
    np.save(tmp_path / "x.npy", np.asarray(X.astype(dtype), order=order))
    found = open_arrays(tmp_path / "x.npy")
    assert list(found) == ["x"]
    assert_rows(found["x"], X)
    found["x"].rows(0, 1).add_(1)  # a mapping of one's own: the file stays as it is
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), X)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_has_arrays_by_key_and_leaves_out_labels(tmp_path, save):
    save(tmp_path / "x.npz", a=X, b=np.asfortranarray(2 * X), labels=np.arange(20), text=["a"])
    found = open_arrays(tmp_path / "x.npz")
    assert set(found) == {"a", "b"}
    assert_rows(found["a"], X)
    assert_rows(found["b"], 2 * X)


def test_safetensors_of_bfloat16(tmp_path):
    save_file({"mlp_in.0": torch.from_numpy(X).bfloat16()}, tmp_path / "x.safetensors")
    array = open_arrays(tmp_path / "x.safetensors")["mlp_in.0"]
    assert array.dtype == torch.bfloat16
    assert_rows(array, X)


def test_a_folder_has_a_site_a_file_or_parts_of_one(tmp_path):
    np.save(tmp_path / "mlp_in.0.npy", X)
    np.save(tmp_path / "mlp_out.0.npy", 2 * X)
    assert set(open_arrays(tmp_path)) == {"mlp_in.0", "mlp_out.0"}
    parts = tmp_path / "parts/resid_post.3"
    parts.mkdir(parents=True)
    for i, part in enumerate((X[:7], X[7:8], X[8:])):
        np.save(parts / f"{i:03}.npy", part)
    found = open_arrays(tmp_path / "parts")
    assert_rows(found["resid_post.3"], X)
    for low, high in ((0, 7), (3, 12), (7, 8), (8, 20), (19, 20)):
        torch.testing.assert_close(
            found["resid_post.3"].rows(low, high), torch.from_numpy(X[low:high])
        )
    shards = tmp_path / "shards"
    shards.mkdir()
    for i, part in enumerate((X[:7], X[7:])):
        save_file({"a": torch.from_numpy(part.copy())}, shards / f"{i}.safetensors")
    assert_rows(open_arrays(shards)["a"], X)


def test_a_fingerprint_changes_with_a_row_and_not_with_the_file(tmp_path):
    np.save(tmp_path / "x.npy", X)
    np.savez(tmp_path / "y.npz", x=X)
    one = fingerprint(open_arrays(tmp_path / "x.npy"))
    assert fingerprint(open_arrays(tmp_path / "y.npz")) == one
    np.save(tmp_path / "x.npy", np.concatenate([X[:19], X[19:] + 1]))
    assert fingerprint(open_arrays(tmp_path / "x.npy")) != one


def header(shape: str, dtype: str = "<f4") -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("touched"),)


def wrong_files(folder: Path) -> dict[str, str]:
    """File -> a part of the sentence that refuses it."""
    (folder / "short.npy").write_bytes(header("(1000000000, 1000000)") + bytes(64))
    (folder / "none.npy").write_bytes(b"")
    (folder / "words.npy").write_bytes(b"no array at all")
    np.save(folder / "flat.npy", X[:, 0])
    np.save(folder / "whole.npy", X.astype(np.int32))
    np.save(folder / "empty.npy", X[:0])
    np.save(folder / "swapped.npy", X.astype(">f4"))
    np.save(folder / "pickle.npy", np.array([[Bomb()]], dtype=object), allow_pickle=True)
    (folder / "raw.npy").write_bytes(pickle.dumps(Bomb()))
    np.savez(folder / "objects.npz", a=np.array([[Bomb()]], dtype=object))
    with zipfile.ZipFile(folder / "lies.npz", "w") as archive:
        archive.writestr("a.npy", header("(1000000, 1000000)") + bytes(64))
    with zipfile.ZipFile(folder / "minus.npz", "w") as archive:
        archive.writestr("a.npy", header("(-4, -4)") + bytes(64))
    np.savez(folder / "cut.npz", a=X)
    data = (folder / "cut.npz").read_bytes()
    (folder / "cut.npz").write_bytes(data[: len(data) // 2])
    (folder / "text.safetensors").write_text("hello")
    save_file({"a": torch.arange(5)}, folder / "labels.safetensors")
    (folder / "x.pt").write_bytes(pickle.dumps(Bomb()))
    return {
        "short.npy": "not a readable .npy",
        "none.npy": "not a readable .npy",
        "words.npy": "not a readable .npy",
        "flat.npy": r"is \[20\] float32; want rows",
        "whole.npy": r"is \[20, 3\] int32; want rows",
        "empty.npy": "want rows|not a readable",
        "swapped.npy": "is of >f4",
        "pickle.npy": "Python objects, which are never loaded",
        "raw.npy": "Python objects, which are never loaded",
        "objects.npz": "Python objects, which are never loaded",
        "lies.npz": "bytes, not",
        "minus.npz": "not a readable .npz",
        "cut.npz": "not a readable .npz",
        "text.safetensors": "not a readable safetensors",
        "labels.safetensors": r"holds a \[5\] int64; want rows",
        "x.pt": "want a file that ends in .npy, .npz, .safetensors",
        "absent.npy": "is not there",
    }


def test_wrong_files_are_refused_in_a_sentence_and_nothing_of_them_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, sentence in wrong_files(tmp_path).items():
        with pytest.raises(ValueError, match=sentence) as caught:
            open_arrays(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "touched").exists()


def test_a_compressed_array_may_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "INFLATED_BYTES", 100)
    np.savez_compressed(tmp_path / "x.npz", a=X)
    with pytest.raises(ValueError, match="takes 240 bytes of memory; want numpy.savez"):
        open_arrays(tmp_path / "x.npz")


def test_files_of_a_folder_have_to_go_together(tmp_path):
    with pytest.raises(ValueError, match="has no file that ends in"):
        open_arrays(tmp_path)
    np.savez(tmp_path / "0.npz", a=X)
    np.savez(tmp_path / "1.npz", a=X[:, :2])
    with pytest.raises(ValueError, match=r"1.npz: a row of a is \[2\] float32, and in 0.npz \[3\]"):
        open_arrays(tmp_path)
    np.savez(tmp_path / "1.npz", b=X)
    with pytest.raises(ValueError, match="1.npz: a row of a is absent"):
        open_arrays(tmp_path)
    np.save(tmp_path / "x.npy", X)
    with pytest.raises(ValueError, match="files that end in .npy and in .npz; want one kind"):
        open_arrays(tmp_path)


def test_arrays_in_memory_are_taken_as_they_are():
    x = torch.zeros(4, 2, requires_grad=True)
    assert arrays.as_array("x", x).rows(0, 4).data_ptr() == x.data_ptr()
    back = np.flip(X, 0)
    assert_rows(arrays.as_array("x", back), back)
    still = X.copy()
    still.flags.writeable = False
    assert_rows(arrays.as_array("x", still), X)
    for value in (
        [1.0],
        "x",
        None,
        io.BytesIO(),
        np.zeros((2, 2), complex),
        np.zeros((2, 2, 2, 2)),
    ):
        with pytest.raises(ValueError, match="x: "):
            arrays.as_array("x", value)
