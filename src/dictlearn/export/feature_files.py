"""circuit-tracer's feature files: what its page shows of a node's feature.

A JSON record for each feature (`frontend/feature_models.py` of circuit-tracer 0.5):

    transcoder_id, index, examples_quantiles [{quantile_name, examples [{tokens, tokens_acts_list,
    train_token_ind, is_repeated_datapoint}]}], top_logits, bottom_logits, act_min, act_max,
    quantile_values (percentiles 1 to 99), histogram (heights over act_min..act_max),
    activation_frequency

`packed`, as on a hub whose files its page reads by range:

    features/index.json.gz    {layer: {filename, offsets}}: feature i is bytes offsets[i] to offsets[i+1]
    features/layer_<L>.bin    for each feature 4 bytes, the length n, little end first; n of zlib

or plain files, one a feature, for a page served from this machine: <c>.json with Cantor's number
c = (L + i)(L + i + 1) / 2 + i of layer L and feature i.

Besides what the page reads, a record has `explanation` where there is one, and whether it is
`explanation_reliable`.
"""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any, final

from dictlearn.export.features import (
    FeatureExporter,
    FeatureJob,
    layer_of,
    no_layers,
    percentiles,
    said,
    spread,
)
from dictlearn.store.layout import Info
from dictlearn.store.records import Example, Feature, TokenScores

SHOWN = 10  # tokens in each list of logits


@final
class FeatureFiles(FeatureExporter):
    """
    Args:
        packed: one file a layer and an index, for a hub; else a file a feature.
        dead: whether plain files are written for features that never fired.
    """

    name = "feature_files"

    def __init__(self, packed: bool = True, dead: bool = False):
        self.packed, self.dead = packed, dead

    def refusal(self, info: Info) -> str | None:
        return no_layers(info)

    def write(self, job: FeatureJob, folder: Path) -> None:
        info = job.store.info
        layers = [layer_of(info, s) for s in range(info.code_sources)]
        if not self.packed:
            for source, layer in enumerate(layers):
                assert layer is not None, "refused before"
                for feature in job.features(source):
                    if self.dead or not feature.dead:
                        path = folder / f"{cantor(layer, feature.index)}.json"
                        path.write_text(_json(record(job, feature)), encoding="utf-8")
            return
        index = {}
        (folder / "features").mkdir()
        for source, layer in enumerate(layers):
            name, offsets = f"layer_{layer}.bin", [0]
            with (folder / "features" / name).open("wb") as file:
                for feature in job.features(source):
                    data = zlib.compress(_json(record(job, feature)).encode())
                    file.write(len(data).to_bytes(4, "little") + data)
                    offsets.append(offsets[-1] + 4 + len(data))
            index[str(layer)] = {"filename": name, "offsets": offsets}
        # No time in its header: the same features, the same bytes.
        packed = gzip.compress(_json(index).encode(), mtime=0)
        (folder / "features/index.json.gz").write_bytes(packed)

    def check(self, job: FeatureJob, folder: Path) -> str:
        info = job.store.info
        pairs = [divmod(i, info.n_features) for i in spread(len(job.store))]
        n = 0
        for source, number in pairs:
            feature = job.store.feature(source, number)
            if self.packed or self.dead or not feature.dead:
                layer = layer_of(info, source)
                assert layer is not None
                n += 1
                if self.read(folder, layer, number) != record(job, feature):
                    raise ValueError(f"feature {source}/{number} reads back as something else")
        return f"{n} features read back as circuit-tracer's page reads them"

    def read(self, folder: Path, layer: int, number: int) -> dict[str, Any]:
        """One record, from the bytes that a page would ask for."""
        if not self.packed:
            return json.loads((folder / f"{cantor(layer, number)}.json").read_bytes())
        index = json.loads(gzip.decompress((folder / "features/index.json.gz").read_bytes()))
        entry = index[str(layer)]
        with (folder / "features" / entry["filename"]).open("rb") as file:
            file.seek(entry["offsets"][number])
            found = file.read(entry["offsets"][number + 1] - entry["offsets"][number])
        length = int.from_bytes(found[:4], "little")
        return json.loads(zlib.decompress(found[4 : 4 + length]))


def cantor(layer: int, number: int) -> int:
    """One number for both, as circuit-tracer's graphs name features."""
    return (layer + number) * (layer + number + 1) // 2 + number


def record(job: FeatureJob, feature: Feature) -> dict[str, Any]:
    """What is written of one feature."""
    info = job.store.info
    quantiles = [("Top", feature.top)]
    for q in reversed(range(len(feature.by_interval))):
        low, high = q / info.intervals, (q + 1) / info.intervals
        quantiles.append((f"Interval {low:.0%} to {high:.0%}", feature.by_interval[q]))
    found = {
        "transcoder_id": f"{info.kind}/{job.store.site(feature.source)}",
        "index": feature.index,
        "examples_quantiles": [
            {"quantile_name": name, "examples": [_shown(job, example) for example in examples]}
            for name, examples in quantiles
            if examples
        ],
        "top_logits": _tokens(job, list(feature.promoted.values())),
        "bottom_logits": _tokens(job, list(feature.suppressed.values())),
        "act_min": 0.0,
        "act_max": feature.maximum,
        "quantile_values": percentiles(feature),
        "histogram": [float(count) for count in feature.histogram],
        "activation_frequency": feature.density,
    }
    explanation = job.explanation(feature)
    if explanation is not None:
        found |= {"explanation": said(explanation), "explanation_reliable": explanation.reliable}
    return found


def _shown(job: FeatureJob, example: Example) -> dict[str, Any]:
    return {
        "tokens": job.text(example.tokens),
        "tokens_acts_list": [round(value, 4) for value in example.activations],
        "train_token_ind": example.peak,
        "is_repeated_datapoint": False,
    }


def _tokens(job: FeatureJob, by_target: list[TokenScores]) -> list[str]:
    """Of a feature that writes to several layers: by the sum of its effects where they are known."""
    total: dict[int, float] = {}
    for scores in by_target:
        for token, effect in scores:
            total[token] = total.get(token, 0.0) + effect
    order = sorted(total, key=lambda token: -abs(total[token]))
    return job.text(tuple(order[:SHOWN]))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
