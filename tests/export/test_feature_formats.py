"""What others show of features: within their limits, and saying what the store says."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from dictlearn.config import compose
from dictlearn.export import neuronpedia
from dictlearn.export.feature_files import FeatureFiles, cantor, record
from dictlearn.export.features import FeatureJob, percentiles
from dictlearn.export.neuronpedia import Neuronpedia, check_payload, read_lines
from dictlearn.store.explanations import Explanation, add_explanations
from dictlearn.store.features import FeatureStore
from dictlearn.verbs import export
from tests.store.made import RULES, made_store, pico_tokenizer

CLT = [f"mlp_in.{n}" for n in (1, 3)], [f"mlp_out.{n}" for n in (1, 3)]
LIVE = [0, 1, 2, 5]  # the others never fire in the text of made_store
SAID = {
    (0, 0): Explanation(
        0, 0, "the token `self`", "lexical", scores={"precision": 1}, reliable=True
    ),
    (1, 1): Explanation(1, 1, "digits, perhaps", "lexical", reliable=False),
    (1, 2): Explanation(1, 2, "", "lexical"),  # nothing was found to say
}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> FeatureJob:
    store = made_store(tmp_path_factory.mktemp("run"), *CLT)
    return FeatureJob(store, SAID, pico_tokenizer())


@pytest.mark.parametrize("packed", [True, False])
def test_a_record_reads_back_from_its_bytes(job: FeatureJob, packed: bool, tmp_path: Path):
    exporter = FeatureFiles(packed)
    exporter.write(job, tmp_path)
    assert "features read back" in exporter.check(job, tmp_path)
    found = exporter.read(tmp_path, 3, 1)
    feature = job.store.feature(1, 1)
    assert found == record(job, feature) and found["transcoder_id"] == "clt/mlp_in.3"
    assert found["act_max"] == feature.maximum and found["histogram"] == list(feature.histogram)
    top = found["examples_quantiles"][0]["examples"][0]
    assert len(top["tokens"]) == len(top["tokens_acts_list"])
    assert top["tokens_acts_list"][top["train_token_ind"]] == max(top["tokens_acts_list"])
    assert found["explanation"] == "[unreliable] digits, perhaps"
    assert found["explanation_reliable"] is False
    assert exporter.read(tmp_path, 1, 0)["explanation"] == "the token `self`"
    assert "explanation" not in exporter.read(tmp_path, 3, 2)


def test_plain_files_are_named_by_cantors_number(job: FeatureJob, tmp_path: Path):
    FeatureFiles(packed=False, dead=True).write(job, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"{cantor(layer, f)}.json" for layer in (1, 3) for f in range(len(RULES))}
    numbers = {cantor(x, y): (x, y) for x in range(40) for y in range(40)}
    assert len(numbers) == 1600 and cantor(0, 0) == 0 and cantor(2, 3) == 18


def test_offsets_begin_and_end_every_record(job: FeatureJob, tmp_path: Path):
    FeatureFiles().write(job, tmp_path)
    index = json.loads(gzip.decompress((tmp_path / "features/index.json.gz").read_bytes()))
    assert list(index) == ["1", "3"]
    for entry in index.values():
        data = (tmp_path / "features" / entry["filename"]).read_bytes()
        assert entry["offsets"][-1] == len(data) and len(entry["offsets"]) == len(RULES) + 1
        for low, high in zip(entry["offsets"], entry["offsets"][1:], strict=False):
            assert int.from_bytes(data[low : low + 4], "little") == high - low - 4


def test_what_was_altered_is_noticed(job: FeatureJob, tmp_path: Path):
    exporter = FeatureFiles(packed=False)
    exporter.write(job, tmp_path)
    path = tmp_path / f"{cantor(1, 2)}.json"
    path.write_text(path.read_text().replace('"index":2', '"index":3'))
    with pytest.raises(ValueError, match="feature 0/2 reads back as something else"):
        exporter.check(job, tmp_path)


def test_percentiles_ascend_to_the_maximum(job: FeatureJob):
    for feature in job.store:
        found = percentiles(feature)
        assert found == sorted(found) and len(found) == (0 if feature.dead else 99)
        assert not found or 0 <= found[0] <= found[-1] <= feature.maximum


def test_neuronpedia_gets_tables_and_payloads(job: FeatureJob, tmp_path: Path):
    exporter = Neuronpedia(set_name="res-dl", creator_id="me", created="2030-01-01")
    exporter.write(job, tmp_path)
    assert "within the limits" in exporter.check(job, tmp_path)
    folder = tmp_path / "v1/pico/3-res-dl"
    for name in ("release", "model", "sourceset", "source"):
        assert json.loads((folder / f"{name}.jsonl").read_text())["creatorId"] == "me"
    features = list(read_lines(folder, "features"))
    assert [row["index"] for row in features] == [str(f) for f in range(len(RULES))]
    examples = list(read_lines(folder, "activations"))
    assert len(examples) == sum(len(job.store.feature(1, f).examples) for f in range(len(RULES)))
    assert len({row["id"] for row in examples}) == len(examples)
    for rows in (features, examples):
        assert len({tuple(row) for row in rows}) == 1, "columns are those of the first line"
    for row in examples:
        assert row["values"][row["maxValueTokenIndex"]] == row["maxValue"] > 0
        assert 0 < row["binContains"] <= 1 and row["binMin"] <= row["binMax"]
    (explanation,) = read_lines(folder, "explanations")
    assert explanation["description"] == "[unreliable] digits, perhaps"
    assert explanation["notes"].startswith("unreliable on unseen documents")
    payload = json.loads((tmp_path / "upload/3-res-dl/batch-0.json").read_text())
    assert [one["index"] for one in payload["features"]] == LIVE
    assert payload["modelId"] == "pico" and payload["source"] == "3-res-dl"
    assert len(payload["features"][1]["topLogits"]) == 5


def test_batches_hold_what_the_api_takes(
    job: FeatureJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(neuronpedia, "BATCH", 4)
    Neuronpedia().write(job, tmp_path)
    paths = sorted((tmp_path / "upload/1-dictlearn").iterdir())
    assert [len(json.loads(path.read_text())["features"]) for path in paths] == [3, len(LIVE) - 3]
    body = json.loads(paths[0].read_text())
    check_payload(body)
    body["features"][0]["topLogits"] *= 5
    with pytest.raises(ValueError, match="feature 0: beyond the limits"):
        check_payload(body)


@pytest.mark.parametrize("name", ["neuronpedia", "feature_files"])
def test_a_run_is_exported_with_what_is_said_of_it(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    store = made_store(tmp_path / "run")
    add_explanations(store.folder, [SAID[0, 0]])
    overrides = [f"run={tmp_path / 'run'}", f"format={name}"]
    assert export.main(compose("export", overrides)) == 0
    written = tmp_path / "run/export" / name
    assert (written / "manifest.json").is_file() and str(written) in capsys.readouterr().err
    text = (
        b"".join(gzip.decompress(path.read_bytes()) for path in written.rglob("*.jsonl.gz"))
        + str(FeatureFiles().read(written, 1, 0) if name == "feature_files" else "").encode()
    )
    assert b"the token `self`" in text


def test_features_of_all_layers_at_once_are_refused(tmp_path: Path):
    made_store(tmp_path / "run", ["model.layers.0:output"])
    with pytest.raises(
        ValueError, match="format=neuronpedia: there a feature belongs to one layer"
    ):
        export.main(compose("export", [f"run={tmp_path / 'run'}", "format=neuronpedia"]))
    assert not (tmp_path / "run/export").exists()


def test_a_run_without_features_says_how_to_make_them(tmp_path: Path):
    (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match="`dictlearn features run=<run>` makes them"):
        export.main(compose("export", [f"run={tmp_path / 'run'}", "format=feature_files"]))


def test_a_store_opens_anywhere(job: FeatureJob):
    assert FeatureStore(job.store.path).info == job.store.info
