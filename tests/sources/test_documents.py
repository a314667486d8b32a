"""Documents: which there are, what of a file is read, and on which side of the split each one is."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.compression import compr

from dictlearn.sources.content import CHUNK
from dictlearn.sources.documents import (
    Document,
    is_held_out,
    stdlib_documents,
    without_duplicates,
)
from dictlearn.sources.hub_text import hub_documents
from dictlearn.sources.left_out import EMPTY, FILES, ROWS, LeftOut
from dictlearn.sources.text_files import find_files, refuse_unreadable, text_documents
from tests.pretend_hub import Hub, empty_cache, served


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


@pytest.mark.parametrize("name", ["a.ndjson", "a.JSONL", "a.json", "a.txt", "c4.json.gz", "plain"])
def test_json_lines_are_known_by_their_content(tmp_path: Path, name: str) -> None:
    texts = ["eins\nzwei", "drei 🙂"]
    lines = "\n" + "\n".join(json.dumps({"url": None, "text": text}) for text in texts) + "\n"
    raw = ("\ufeff" + lines).encode()
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    assert [d.text for d in text_documents(str(tmp_path / name))] == texts


def test_a_json_array_of_objects_is_rows_too(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"text": "a"}, {"text": "b"}], indent=2))
    assert [d.text for d in text_documents(str(tmp_path / "a.json"))] == ["a", "b"]


@pytest.mark.parametrize(
    "text",
    ["not zipped at all", "{\n  'a': 1\n}\n", '{"a": 1} and more\n', "[1, 2]\n", "[x] a list\n"]
    + ['{"text": "a"}\nand then prose\n', "[]", "1\n2\n"],
)
def test_what_is_not_rows_is_one_document(tmp_path: Path, text: str) -> None:
    (tmp_path / "plain.txt.gz").write_text(text)
    assert [d.text for d in text_documents(str(tmp_path / "plain.txt.gz"))] == [text]


def test_files_are_plain_text_where_no_field_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": 1}\n')
    assert [d.text for d in text_documents(str(tmp_path / "a.json"), None)] == ['{"a": 1}\n']


def test_plain_text_is_split_into_documents(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\nline\n\ntwo\n\n\n\nthree")
    (tmp_path / "b.txt").write_bytes(b"four\r\n\r\nfive")
    (tmp_path / "c.jsonl").write_text('{"text": "a\\n\\nb"}\n')
    paths, left_out = str(tmp_path / "*"), LeftOut()
    for written in ("\n\n", r"\n\n"):  # in a yaml, and as a shell gives it
        read = text_documents(paths, split_on=written)
        found = [d.text for d in without_duplicates(read, left_out)]
        assert found == ["one\nline", "two", "three", "four", "five", "a\n\nb"]
    assert left_out == {EMPTY: 2}
    assert [d.text for d in text_documents(str(tmp_path / "a.txt"), split_on=".")] == [
        (tmp_path / "a.txt").read_text()
    ]
    for wrong in ("", 3):
        with pytest.raises(ValueError, match=rf"data\.split_on={wrong}: want null, or the text"):
            list(text_documents(paths, split_on=wrong))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_rows_without_text_are_left_out_and_counted(tmp_path: Path, name: str) -> None:
    rows = [{"text": None, "n": 1}, {"text": "a", "n": 1}, {"text": None, "n": 2}]
    if name == "a.jsonl":
        rows += [{"n": 3}, {"text": ["a"]}]  # type: ignore[list-item]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    left_out = LeftOut()
    found = list(text_documents(str(tmp_path / name), left_out=left_out))
    assert [d.text for d in found] == ["a"]
    assert left_out == {ROWS: len(rows) - 1}


def test_what_was_left_out_is_a_sentence() -> None:
    texts = ["a", "", "a", "half \ud83d of it", "whole 🙂"]
    left_out = LeftOut()
    found = [d.text for d in without_duplicates((Document(t, t) for t in texts), left_out)]
    assert found == ["a", "half \ufffd of it", "whole 🙂"]
    assert left_out.sentences() == [
        "data: left out 1 repeated document, 1 document without text",
        "data: half a character (a lone surrogate) became U+FFFD in 1 document",
    ]
    assert LeftOut().sentences() == []
    assert LeftOut({FILES: 1200, ROWS: 2}).sentences() == [
        "data: left out 2 rows without text in data.field, 1,200 files that are not text"
    ]


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
    (folder / "book.pdf").write_bytes(b"%PDF-1.7 and so on")
    yield "book.pdf", "it is a PDF; want text"
    (folder / "packed.txt").write_bytes(b"\x28\xb5\x2f\xfd and so on")
    yield "packed.txt", "it is compressed with zstd, which needs" if "zstd" not in compr else "."
    zipped = gzip.compress(b"a long enough text " * 100)
    (folder / "cut.txt.gz").write_bytes(zipped[: len(zipped) // 2])
    yield "cut.txt.gz", "ended before"
    flipped = bytearray(zipped)
    flipped[12] ^= 0xFF
    (folder / "flipped.jsonl.gz").write_bytes(bytes(flipped))
    yield "flipped.jsonl.gz", "."
    (folder / "cut.parquet").write_bytes(b"PAR1 and no more")
    yield "cut.parquet", "."
    (folder / "cut.jsonl").write_text('{"text": "a"}\n{"text": "b')
    yield "cut.jsonl", "line 2 is not JSON"
    (folder / "list.jsonl").write_text("[1]\n")
    yield "list.jsonl", "line 1 is not a JSON object"
    (folder / "digits.jsonl").write_text('{"text": "a"}\n{"n": ' + "9" * 5000 + "}")
    yield "digits.jsonl", "line 2 is not JSON"
    (folder / "deep.ndjson").write_text("[" * 100_000)
    yield "deep.ndjson", "line 1 is not JSON"


def test_an_unreadable_file_is_named_with_the_reason(tmp_path: Path) -> None:
    for name, why in _write_unreadable(tmp_path):
        path = tmp_path / name
        with pytest.raises(ValueError, match=rf"data\.paths: {path} cannot be read: .*{why}"):
            list(text_documents(str(path)))


def test_what_is_no_text_is_found_before_any_file_is_read(tmp_path: Path) -> None:
    """Counted and named, with the byte's place in the file, also beyond what is decoded at once."""
    latin = "für".encode("latin-1")
    for name, content in {
        "a.txt": b"a good one",
        "b.txt": "é".encode() * CHUNK + latin,
        "c.jsonl": b'{"text": "a"}\n{"text": "' + latin + b'"}\n',
        "d.txt.gz": gzip.compress("für".encode()[:2]),
        "e.txt": b"%PDF-",
        "f.parquet": b"PAR1\xff",
    }.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as error:
        next(text_documents(str(tmp_path / "*")))
    said = str(error.value)
    assert said.startswith("data.paths: 4 of 6 files cannot be read: ") and said.endswith(
        "and 1 more"
    )
    for name, at in (("b.txt", f"{2 * CHUNK + 1:,}"), ("c.jsonl", "25"), ("d.txt.gz", "1")):
        assert f"{tmp_path / name}: it is not UTF-8 text at byte {at} " in said
    files = find_files(str(tmp_path / "*"))
    refuse_unreadable(files[:2], limit=CHUNK)  # a first look, before torch is imported
    with pytest.raises(ValueError, match=r"b\.txt cannot be read"):
        refuse_unreadable(files[:2])


def test_files_without_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    (tmp_path / "b.txt").write_text("\ufeff \n")
    with pytest.raises(ValueError, match=r"data\.paths=.*/a\.txt: there is no text in it"):
        refuse_unreadable(find_files(str(tmp_path / "a.txt")))
    with pytest.raises(ValueError, match="no text in any of the 2 files"):
        refuse_unreadable(find_files(str(tmp_path / "*")))
    (tmp_path / "c.txt").write_text("text")
    refuse_unreadable(find_files(str(tmp_path / "*")))


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


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_field_may_lie_in_another(tmp_path: Path, name: str) -> None:
    rows = [
        {"talk": {"text": "deep", "n": 1}, "a.b": "in the name"},
        {"talk": {"text": None, "n": 2}, "a.b": "again"},
        {"talk": None, "a.b": "last"},
    ]
    if name == "a.jsonl":
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    left_out = LeftOut()
    read = text_documents(str(tmp_path / name), "talk.text", None, left_out)
    assert [d.text for d in read] == ["deep"]
    assert left_out == {ROWS: 2}
    assert [d.text for d in text_documents(str(tmp_path / name), "a.b")][0] == "in the name"
    assert [d.text for d in hub_documents(str(tmp_path), field="talk.text")] == ["deep"]
    with pytest.raises(
        ValueError, match=r"data\.field=talk\.words: .* no such field, but talk\.text, talk\.n"
    ):
        list(text_documents(str(tmp_path / name), "talk.words"))


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


@pytest.mark.parametrize("other", [{"meta": "web"}, {"meta": {"a": 1}}, {"more": [1]}])
def test_of_a_folder_of_json_only_the_field_is_read(
    tmp_path: Path, other: dict[str, object]
) -> None:
    """Two files whose other columns have other types: `datasets` has no table for both."""
    for name, more in (("a.jsonl", {"meta": None}), ("b.jsonl", other)):
        rows = [{"text": f"{name} {i}", **more} for i in range(2)]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = [d.text for d in hub_documents(str(tmp_path))]
    assert found == ["a.jsonl 0", "a.jsonl 1", "b.jsonl 0", "b.jsonl 1"]


def test_of_a_folder_of_parquet_only_the_field_is_read(tmp_path: Path) -> None:
    for name, more in (("a", [1, 2]), ("b", ["x", "y"])):
        table = pa.table({"text": [f"{name} 0", None], "meta": more})
        pq.write_table(table, tmp_path / f"{name}.parquet")
    left_out = LeftOut()
    assert [d.text for d in hub_documents(str(tmp_path), left_out=left_out)] == ["a 0", "b 0"]
    assert left_out == {ROWS: 2}


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


@pytest.mark.parametrize(
    ("status", "error", "says"),
    [
        (401, "GatedRepo", "its owner wants its terms accepted at .*/datasets/owner/tiny; do that"),
        (404, "RepoNotFound", "no such folder here and no such data set on the hub, unless it is"),
        (404, "RevisionNotFound", "has no such branch, tag or commit"),
        (429, "", "the hub takes no more requests from here for now"),
        (503, "", "answers with status 503 and no local copy was found"),
        (
            0,
            "",
            "the hub cannot be reached and no local copy was found at revision v2; download it",
        ),
    ],
)
def test_what_the_hub_says_of_a_data_set_is_a_sentence_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, error: str, says: str
) -> None:
    """Its own client tries again for half a minute: it is not asked."""
    monkeypatch.setattr(
        datasets, "load_dataset_builder", lambda *_, **__: pytest.fail("asked again")
    )
    empty_cache(tmp_path, monkeypatch)
    hub = Hub({}, status, error)
    with (
        served(hub, monkeypatch) if status else nullcontext(),
        pytest.raises(ValueError, match=says),
    ):
        list(hub_documents("owner/tiny", revision="v2"))
    assert len(hub.asked) == bool(status)
