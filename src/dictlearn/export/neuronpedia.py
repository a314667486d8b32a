"""Neuronpedia: files for its importer (layout v1), and payloads for its upload API.

    v1/<model>/<source>/   release, model, sourceset, source .jsonl
                           features/, activations/, explanations/ batch-<n>.jsonl.gz
    upload/<source>/       batch-<n>.json, the body of POST /api/feature/upload-batch: at most 128
                           features, 20 logits each way, 1,024 tokens, 512 letters of explanation

A source is a layer of the model: `<layer>-<set_name>`. The importer takes the columns from a file's
first line, so all lines of a file have the same keys. It reads only Neuronpedia's own bucket, so send
the v1 folder to Neuronpedia. Anybody may upload features to a source set of their own, with names of
methods and models that are registered there. The upload API requires an example per feature, so
features that never fired are left out.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, final

from dictlearn.export.features import (
    FeatureExporter,
    FeatureJob,
    explanation_text,
    layer_refusal,
    sample_numbers,
)
from dictlearn.store.explanations import Explanation
from dictlearn.store.layout import Info, layer_of
from dictlearn.store.records import Example, Feature, TokenScores

BATCH, LOGITS, TOKENS, LETTERS = 128, 20, 1024, 512


@final
class Neuronpedia(FeatureExporter):
    """
    Args:
        model_id: Neuronpedia's name of the model; null: the model's own name, without its owner.
        set_name: name of the source set, such as res-16k-dl.
        creator_id: id of the Neuronpedia user.
        release: name of the release; null: the source set's name.
        created: time of creation, ISO 8601; null: now.
    """

    name = "neuronpedia"

    def __init__(
        self,
        model_id: str | None = None,
        set_name: str = "dictlearn",
        creator_id: str = "",
        release: str | None = None,
        created: str | None = None,
    ):
        self.model_id, self.set_name, self.creator_id = model_id, set_name, creator_id
        self.release = release or set_name
        self.created = created or datetime.now(UTC).isoformat(timespec="seconds")

    def refusal(self, info: Info) -> str | None:
        return layer_refusal(info)

    def write(self, job: FeatureJob, folder: Path) -> None:
        for source in range(job.store.info.code_sources):
            self._write_source(job, source, folder)

    def check(self, job: FeatureJob, folder: Path) -> str:
        """Checks every limit of the API, and the numbers of some features."""
        info, n_uploaded = job.store.info, 0
        for source in range(info.code_sources):
            uploaded: dict[int, dict[str, Any]] = {}
            for path in sorted((folder / "upload" / self.source_id(info, source)).glob("*.json")):
                payload = json.loads(path.read_bytes())
                check_payload(payload)
                uploaded |= {feature["index"]: feature for feature in payload["features"]}
            rows = {
                int(row["index"]): row
                for row in read_lines(self._folder(info, source, folder), "features")
            }
            for number in sample_numbers(info.n_features):
                feature = job.store.feature(source, number)
                same = rows[number]["maxActApprox"] == feature.maximum
                same &= rows[number]["frac_nonzero"] == feature.density
                same &= (number in uploaded) != feature.dead
                if not same:
                    raise ValueError(f"feature {source}/{number} reads back as something else")
            n_uploaded += len(uploaded)
        return f"{n_uploaded:,} features within the limits of Neuronpedia's upload"

    def source_id(self, info: Info, source: int) -> str:
        return f"{layer_of(info, source)}-{self.set_name}"

    def model_of(self, info: Info) -> str:
        return self.model_id or info.model.rstrip("/").split("/")[-1]

    def _folder(self, info: Info, source: int, folder: Path) -> Path:
        return folder / "v1" / self.model_of(info) / self.source_id(info, source)

    def _write_source(self, job: FeatureJob, source: int, folder: Path) -> None:
        info = job.store.info
        v1 = self._folder(info, source, folder)
        upload = folder / "upload" / self.source_id(info, source)
        for name in ("features", "activations", "explanations"):
            (v1 / name).mkdir(parents=True)
        upload.mkdir(parents=True)
        for name, row in self._about(info, source).items():
            (v1 / f"{name}.jsonl").write_text(_line(row), encoding="utf-8")
        for number, batch in enumerate(_batches(job.features(source))):
            explained = [(f, e) for f in batch if (e := job.explanation(f)) is not None]
            lines = {
                "features": (self._feature(job, f) for f in batch),
                "activations": (row for f in batch for row in self._activations(job, f)),
                "explanations": (self._explanation(info, f, e) for f, e in explained),
            }
            for name, rows in lines.items():
                _write_lines(v1 / name / f"batch-{number}.jsonl.gz", rows)
            live = [payload(job, f) for f in batch if not f.dead]
            if live:
                head = {"modelId": self.model_of(info), "source": self.source_id(info, source)}
                text = _line({**head, "features": live})
                (upload / f"batch-{number}.json").write_text(text, encoding="utf-8")

    def _about(self, info: Info, source: int) -> dict[str, dict[str, Any]]:
        """The rows of the release, model, source set and source of these features."""
        model, created = self.model_of(info), self.created
        creation = {"creatorId": self.creator_id, "createdAt": created}
        described = f"{info.kind} with {info.n_features} features, trained with dictlearn"
        return {
            "release": {"name": self.release, "description": described, **creation},
            "model": {"id": model, "displayName": model, "displayNameShort": model, **creation},
            "sourceset": {
                "modelId": model,
                "name": self.set_name,
                "releaseName": self.release,
                "description": described,
                "type": info.kind,
                **creation,
            },
            "source": {
                "id": self.source_id(info, source),
                "modelId": model,
                "setName": self.set_name,
                "hasDashboards": True,
                "inferenceEnabled": False,
                "num_prompts": info.windows,
                "num_tokens_in_prompt": info.context,
                "notes": f"dictionary sha256 {info.dictionary_sha256}",
                **creation,
            },
        }

    def _feature_id(self, info: Info, feature: Feature) -> dict[str, Any]:
        return {
            "modelId": self.model_of(info),
            "layer": self.source_id(info, feature.source),
            "index": str(feature.index),
            "creatorId": self.creator_id,
            "createdAt": self.created,
        }

    def _feature(self, job: FeatureJob, feature: Feature) -> dict[str, Any]:
        info = job.store.info
        neighbours = [(i, c) for s, i, c in feature.neighbours if s == feature.source]
        cofiring = [i for s, i, _ in feature.cofiring if s == feature.source]
        promoted, suppressed = _merged(feature.promoted), _merged(feature.suppressed)
        width = feature.maximum / len(feature.histogram)
        return {
            **self._feature_id(info, feature),
            "sourceSetName": self.set_name,
            "maxActApprox": feature.maximum,
            "hasVector": False,
            "vector": [],
            "hookName": info.sources[feature.source],
            "topkCosSimIndices": [i for i, _ in neighbours],
            "topkCosSimValues": [c for _, c in neighbours],
            "correlated_features_indices": cofiring,
            "correlated_features_pearson": [],
            "correlated_features_l1": [],
            "neg_str": _plain(job.text(tuple(t for t, _ in suppressed))),
            "neg_values": [value for _, value in suppressed],
            "pos_str": _plain(job.text(tuple(t for t, _ in promoted))),
            "pos_values": [value for _, value in promoted],
            "frac_nonzero": feature.density,
            "freq_hist_data_bar_heights": list(feature.histogram),
            "freq_hist_data_bar_values": [(i + 0.5) * width for i in range(len(feature.histogram))],
        }

    def _activations(self, job: FeatureJob, feature: Feature) -> Iterator[dict[str, Any]]:
        info = job.store.info
        for number, example in enumerate(feature.examples):
            values = list(example.activations)
            low, high, share = bounds(feature, example, info.intervals)
            yield {
                "id": _id(info.dictionary_sha256, feature.source, feature.index, number),
                **self._feature_id(info, feature),
                "tokens": _plain(job.text(example.tokens)),
                "values": values,
                "maxValue": max(values),
                "maxValueTokenIndex": values.index(max(values)),
                "minValue": min(values),
                "dataIndex": str(example.window),
                "dataSource": str(info.data.get("path") or info.data.get("_target_", "")),
                "qualifyingTokenIndex": example.peak,
                "binMin": low,
                "binMax": high,
                "binContains": share,
            }

    def _explanation(
        self, info: Info, feature: Feature, explanation: Explanation
    ) -> dict[str, Any]:
        scores = ", ".join(f"{name} {value:.3f}" for name, value in explanation.scores.items())
        trust = "reliable" if explanation.reliable else "unreliable"
        feature_id = self._feature_id(info, feature)
        return {
            "id": _id(info.dictionary_sha256, feature.source, feature.index, -1),
            **{key: value for key, value in feature_id.items() if key != "creatorId"},
            "description": explanation_text(explanation)[:LETTERS],
            "authorId": self.creator_id,
            "triggeredById": self.creator_id,
            "typeName": f"dictlearn_{explanation.explainer}",
            "explanationModelName": explanation.model,
            "notes": f"{trust} on unseen documents: {scores}",
        }


def payload(job: FeatureJob, feature: Feature) -> dict[str, Any]:
    """The JSON of one feature of an upload."""
    explanation = job.explanation(feature)
    explanations = []
    if explanation is not None:
        explanations = [
            {
                "text": explanation_text(explanation)[:LETTERS],
                "methodName": f"dictlearn_{explanation.explainer}",
                "modelName": explanation.model or explanation.explainer,
            }
        ]
    examples = []
    for example in feature.examples:
        low, high, share = bounds(feature, example, job.store.info.intervals)
        examples.append(
            {
                "tokens": _plain(job.text(example.tokens))[:TOKENS],
                "values": list(example.activations)[:TOKENS],
                "quantileMin": low,
                "quantileMax": high,
                "quantileFraction": share,
            }
        )
    return {
        "index": feature.index,
        "density": feature.density,
        "topLogits": _logits(job, _merged(feature.promoted)),
        "bottomLogits": _logits(job, _merged(feature.suppressed)),
        "explanations": explanations,
        "activations": examples,
    }


def check_payload(body: dict[str, Any]) -> None:
    """Raises ValueError if the upload API would refuse the body of a request."""
    features = body["features"]
    fits = 1 <= len(features) <= BATCH
    for feature in features:
        fits &= 0 <= feature["density"] <= 1 and 0 <= feature["index"] <= 10_000_000
        fits &= max(len(feature["topLogits"]), len(feature["bottomLogits"])) <= LOGITS
        fits &= all(1 <= len(entry["text"]) <= LETTERS for entry in feature["explanations"])
        fits &= len(feature["activations"]) >= 1
        for example in feature["activations"]:
            fits &= 1 <= len(example["tokens"]) == len(example["values"]) <= TOKENS
            fits &= 0 <= example["quantileFraction"] <= 1
        if not fits:
            raise ValueError(
                f"feature {feature['index']}: beyond the limits of Neuronpedia's upload"
            )


def bounds(feature: Feature, example: Example, intervals: int) -> tuple[float, float, float]:
    """(lowest, highest, share of firings) of the part of the range that an example comes from."""
    if example.interval is None:
        values = [e.activation for e in feature.top]
        return min(values), max(values), len(values) / feature.count
    values = [e.activation for e in feature.by_interval[example.interval]]
    rest = (feature.count - len(feature.top)) / intervals
    return min(values), max(values), max(rest, 0) / feature.count


def read_lines(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    """The rows of one table of a source, as the importer reads them."""
    for path in sorted((folder / name).glob("batch-*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            yield from map(json.loads, file)


def _merged(by_target: Any) -> TokenScores:
    """The largest effect on each token over all targets, as one sorted list."""
    largest: dict[int, float] = {}
    for scores in by_target.values():
        for token, effect in scores:
            if abs(effect) > abs(largest.get(token, 0.0)):
                largest[token] = effect
    order = sorted(largest.items(), key=lambda pair: -abs(pair[1]))
    return tuple(order[:LOGITS])


def _logits(job: FeatureJob, scores: TokenScores) -> list[dict[str, Any]]:
    pieces = _plain(job.text(tuple(token for token, _ in scores)))
    return [{"token": t, "value": v} for t, (_, v) in zip(pieces, scores, strict=True)]


def _plain(pieces: list[str]) -> list[str]:
    """Replaces NUL, which Postgres can't store."""
    return [piece.replace("\0", "\N{SYMBOL FOR NULL}") for piece in pieces]


def _id(*parts: object) -> str:
    """An id of 25 letters, like the importer's other ids, which depends only on `parts`."""
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    return "c" + digest[:24]


def _batches(features: Iterator[Feature]) -> Iterator[list[Feature]]:
    while batch := list(islice(features, BATCH)):
        yield batch


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    # Without a time in its header, the same features give the same bytes.
    with path.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:
        for row in rows:
            file.write(_line(row).encode())


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"
