"""Documents: which there are, what of a file is read, and on which side of the split each one is."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dictlearn.sources.documents import (
    Document,
    is_held_out,
    stdlib_documents,
    without_duplicates,
)
from dictlearn.sources.hub_text import hub_documents
from dictlearn.sources.text_files import text_documents


@pytest.fixture(scope="module")
def stdlib() -> list[Document]:
    return stdlib_documents()


def test_the_split_depends_on_the_key_alone() -> None:
    keys = [f"module_{i}.py" for i in range(4000)]
    held_out = {key for key in keys if is_held_out(key, 0.1)}
    assert 300 < len(held_out) < 500
    assert held_out == {key for key in reversed(keys) if is_held_out(key, 0.1)}
    assert held_out < {key for key in keys if is_held_out(key, 0.2)}
    assert held_out != {key for key in keys if is_held_out(key, 0.1, salt="other")}
    assert not any(is_held_out(key, 0.0) for key in keys)
    assert all(is_held_out(key, 1.0) for key in keys)


def test_the_split_of_known_files_never_moves() -> None:
    """pico was trained on one side of it: another hash would leak its training text into eval."""
    keys = ["argparse.py", "enum.py", "json/decoder.py", "json/encoder.py", "typing.py"]
    assert [is_held_out(key, 0.1) for key in keys] == [False, True, False, True, False]


@pytest.mark.parametrize("fraction", [-0.1, 1.5])
def test_a_fraction_outside_0_to_1_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match=rf"data\.held_out={fraction}: .* from 0 to 1"):
        is_held_out("abc.py", fraction)


def test_repeated_and_empty_texts_are_dropped() -> None:
    texts = ["a", "", "b", "a", " \n", "c"]
    documents = [Document(f"key {i}", text) for i, text in enumerate(texts)]
    assert [d.key for d in without_duplicates(documents)] == ["key 0", "key 2", "key 5"]


def test_the_standard_library_is_whole_and_nothing_else(stdlib: list[Document]) -> None:
    keys = [document.key for document in stdlib]
    assert keys == sorted(set(keys), key=lambda key: key.split("/"))
    assert {"argparse.py", "json/decoder.py", "asyncio/tasks.py"} <= set(keys)
    assert not any("site-packages" in key for key in keys)
    assert len({document.text for document in stdlib}) == len(stdlib)
    path = Path(sys.modules["json"].__file__ or "").parent / "decoder.py"
    assert dict(stdlib)["json/decoder.py"] == path.read_text(encoding="utf-8")


def test_every_kind_of_file_gives_its_documents(tmp_path: Path) -> None:
    rows = [{"id": 1, "text": "eins\nzwei"}, {"id": 2, "text": "drei ü"}]
    texts = [row["text"] for row in rows]
    lines = "\n".join(json.dumps(row) for row in rows) + "\n\n"
    (tmp_path / "a.jsonl").write_text(lines)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "a.txt").write_text("\ufeffvier\r\n", encoding="utf-8")
    for name in ("a.jsonl", "a.parquet", "a.txt"):
        with gzip.open(tmp_path / f"{name}.gz", "wb") as file:
            file.write((tmp_path / name).read_bytes())

    for name in ("a.jsonl", "a.jsonl.gz", "a.parquet", "a.parquet.gz"):
        assert [d.text for d in text_documents(str(tmp_path / name))] == texts, name
    for name in ("a.txt", "a.txt.gz"):
        assert [d.text for d in text_documents(str(tmp_path / name))] == ["vier\r\n"], name
    assert [d.key for d in text_documents(str(tmp_path / "a.jsonl"))] == texts


def test_globs_reach_folders_and_name_no_file_twice(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("b.txt", "deep/a.txt", "deep/er/c.txt"):
        (tmp_path / name).write_text(name)
    paths = [str(tmp_path / "deep" / "a.txt"), str(tmp_path / "**" / "*.txt")]
    assert [d.text for d in text_documents(paths)] == ["deep/a.txt", "b.txt", "deep/er/c.txt"]


@pytest.mark.parametrize("name", ["none.txt", "*.jsonl", "folder/**/*.gz"])
def test_a_path_that_matches_nothing_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"no file matches; want files or globs") as error:
        list(text_documents(str(tmp_path / name)))
    assert f"data.paths={tmp_path / name}: " in str(error.value)


def test_a_folder_is_answered_with_the_glob_to_use(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is a folder; want files, or a glob such as .*\*\*"):
        list(text_documents(str(tmp_path)))


def test_no_paths_at_all_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"data\.paths=\[\]: want files or globs"):
        list(text_documents([]))


def _write_unreadable(folder: Path) -> Iterator[tuple[str, str]]:
    (folder / "latin.txt").write_bytes("für".encode("latin-1"))
    yield "latin.txt", "not UTF-8 text at byte 1"
    (folder / "latin.jsonl").write_bytes('{"text": "für"}'.encode("latin-1"))
    yield "latin.jsonl", "not UTF-8 text"
    (folder / "plain.txt.gz").write_text("not zipped at all")
    yield "plain.txt.gz", "[Nn]ot a gzipped file"
    zipped = gzip.compress(b"a long enough text " * 100)
    (folder / "cut.txt.gz").write_bytes(zipped[: len(zipped) // 2])
    yield "cut.txt.gz", "ended before"
    flipped = bytearray(zipped)
    flipped[12] ^= 0xFF
    (folder / "flipped.jsonl.gz").write_bytes(bytes(flipped))
    yield "flipped.jsonl.gz", "."
    (folder / "text.parquet").write_text("not parquet")
    yield "text.parquet", "."
    (folder / "cut.jsonl").write_text('{"text": "a"}\n{"text": "b')
    yield "cut.jsonl", "line 2 is not JSON"
    (folder / "list.jsonl").write_text("[1]\n")
    yield "list.jsonl", "line 1 is not a JSON object"


def test_an_unreadable_file_is_named_with_the_reason(tmp_path: Path) -> None:
    for name, why in _write_unreadable(tmp_path):
        path = tmp_path / name
        with pytest.raises(ValueError, match=rf"data\.paths: {path} cannot be read: .*{why}"):
            list(text_documents(str(path)))


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_missing_field_lists_those_there_are(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "a.jsonl":
        path.write_text('{"title": "x", "body": "y", "n": 3}\n')
    else:
        pq.write_table(pa.table({"title": ["x"], "body": ["y"], "n": [3]}), path)
    with pytest.raises(ValueError, match=rf"data\.field=text: {path}.*but title, body, n"):
        list(text_documents(str(path)))
    with pytest.raises(ValueError, match=r"data\.field=n: .* holds int; want a field of text"):
        list(text_documents(str(path), field="n"))


@pytest.fixture
def hub_folder(tmp_path: Path) -> Path:
    """A data set as the hub lays it out: a card that names the configurations, parquet shards."""
    folder = tmp_path / "dataset"
    (folder / "data").mkdir(parents=True)
    for shard in range(2):
        table = pa.table({"body": [f"document {shard}.{i}" for i in range(3)]})
        pq.write_table(table, folder / "data" / f"train-{shard:05d}-of-00002.parquet")
    pq.write_table(pa.table({"body": ["other"]}), folder / "data" / "small-00000-of-00001.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n"
        "- config_name: default\n  data_files:\n  - {split: train, path: data/train-*}\n"
        "- config_name: small\n  data_files:\n  - {split: train, path: data/small-*}\n---\n"
    )
    return folder


def test_a_folder_in_the_hubs_layout_streams(hub_folder: Path) -> None:
    texts = [d.text for d in hub_documents(str(hub_folder), field="body")]
    assert texts == [f"document {shard}.{i}" for shard in range(2) for i in range(3)]
    small = hub_documents(str(hub_folder), name="small", field="body")
    assert [d.key for d in small] == ["other"]


def test_mistakes_about_a_data_set_are_named(hub_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.field=text: row 0 of .* but body"):
        list(hub_documents(str(hub_folder)))
    with pytest.raises(ValueError, match=r"data\.hub_split=test: .*train"):
        list(hub_documents(str(hub_folder), split="test"))
    with pytest.raises(ValueError, match=r"data\.name=big .*default"):
        list(hub_documents(str(hub_folder), name="big"))
    with pytest.raises(ValueError, match=r"no such folder with data files"):
        list(hub_documents(str(tmp_path / "nowhere")))
    (hub_folder / "data" / "train-00000-of-00002.parquet").write_text("damaged")
    with pytest.raises(ValueError, match=rf"data\.path={hub_folder} cannot be read: "):
        list(hub_documents(str(hub_folder), field="body"))


@pytest.mark.parametrize("place", ["../private/*.txt", "{parent}/private/key.txt"])
def test_a_data_set_names_no_files_of_another_place(tmp_path: Path, place: str) -> None:
    (tmp_path / "private").mkdir()
    (tmp_path / "private/key.txt").write_text("swordfish")
    (tmp_path / "theirs/data").mkdir(parents=True)
    (tmp_path / "theirs/data/a.txt").write_text("a line")
    files = place.format(parent=tmp_path)
    readme = tmp_path / "theirs/README.md"
    front = "---\nconfigs:\n- config_name: default\n  data_files: '{}'\n---\n"
    readme.write_text(front.format(files))
    with pytest.raises(ValueError, match=r"names the data file .*key\.txt, which is not its own"):
        list(hub_documents(str(tmp_path / "theirs")))
    readme.write_text(front.format("data/*.txt"))
    assert [d.text for d in hub_documents(str(tmp_path / "theirs"))] == ["a line"]


def test_offline_a_hub_id_says_what_to_do() -> None:
    with pytest.raises(ValueError) as error:
        list(hub_documents("someone/some-text"))
    assert str(error.value) == (
        "data.path=someone/some-text: the hub cannot be reached and no local copy was found; "
        "download it and pass data.path=<folder>"
    )
