"""circuit-tracer's feature files, from which its page shows the feature of a node.

Each feature has a JSON record (`frontend/feature_models.py` of circuit-tracer 0.5):

    transcoder_id, index, examples_quantiles [{quantile_name, examples [{tokens, tokens_acts_list,
    train_token_ind, is_repeated_datapoint}]}], top_logits, bottom_logits, act_min, act_max,
    quantile_values (percentiles 1 to 99), histogram (heights over act_min..act_max),
    activation_frequency

With `packed`, the page reads ranges of a hub's files:

    features/index.json.gz    {layer: {filename, offsets}}: feature i is bytes offsets[i] to offsets[i+1]
    features/layer_<L>.bin    for each feature its length n in 4 bytes, little-endian; n bytes of zlib

Without it there is one file per feature, for a page on this machine: <c>.json, where
c = (L + i)(L + i + 1) / 2 + i is Cantor's number of layer L and feature i.

If a feature has an explanation, its record has `explanation` and `explanation_reliable` too.
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
    explanation_text,
    layer_refusal,
    percentiles,
    sample_numbers,
)
from dictlearn.store.layout import Info, layer_of
from dictlearn.store.records import Example, Feature, TokenScores

N_LOGITS = 10  # tokens in each list of logits


@final
class FeatureFiles(FeatureExporter):
    """
    Args:
        packed: whether there is one file per layer and an index, for a hub, or one per feature.
        dead: whether features that never fired get a file too, without `packed`.
    """

    name = "feature_files"

    def __init__(self, packed: bool = True, dead: bool = False):
        self.packed, self.dead = packed, dead

    def refusal(self, info: Info) -> str | None:
        return layer_refusal(info)

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
        # Without a time in its header, the same features give the same bytes.
        packed = gzip.compress(_json(index).encode(), mtime=0)
        (folder / "features/index.json.gz").write_bytes(packed)

    def check(self, job: FeatureJob, folder: Path) -> str:
        info = job.store.info
        pairs = [divmod(i, info.n_features) for i in sample_numbers(len(job.store))]
        n_checked = 0
        for source, number in pairs:
            feature = job.store.feature(source, number)
            if self.packed or self.dead or not feature.dead:
                layer = layer_of(info, source)
                assert layer is not None
                n_checked += 1
                if self.read(folder, layer, number) != record(job, feature):
                    raise ValueError(f"feature {source}/{number} reads back as something else")
        return f"{n_checked} features read back as circuit-tracer's page reads them"

    def read(self, folder: Path, layer: int, number: int) -> dict[str, Any]:
        """Reads one record as the page does."""
        if not self.packed:
            return json.loads((folder / f"{cantor(layer, number)}.json").read_bytes())
        index = json.loads(gzip.decompress((folder / "features/index.json.gz").read_bytes()))
        entry = index[str(layer)]
        with (folder / "features" / entry["filename"]).open("rb") as file:
            file.seek(entry["offsets"][number])
            data = file.read(entry["offsets"][number + 1] - entry["offsets"][number])
        length = int.from_bytes(data[:4], "little")
        return json.loads(zlib.decompress(data[4 : 4 + length]))


def cantor(layer: int, number: int) -> int:
    """The Cantor number of a layer and a feature, by which circuit-tracer's graphs name features."""
    return (layer + number) * (layer + number + 1) // 2 + number


def record(job: FeatureJob, feature: Feature) -> dict[str, Any]:
    """The JSON record of a feature."""
    info = job.store.info
    quantiles = [("Top", feature.top)]
    for q in reversed(range(len(feature.by_interval))):
        low, high = q / info.intervals, (q + 1) / info.intervals
        quantiles.append((f"Interval {low:.0%} to {high:.0%}", feature.by_interval[q]))
    fields = {
        "transcoder_id": f"{info.kind}/{job.store.site(feature.source)}",
        "index": feature.index,
        "examples_quantiles": [
            {"quantile_name": name, "examples": [_example(job, example) for example in examples]}
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
        fields |= {
            "explanation": explanation_text(explanation),
            "explanation_reliable": explanation.reliable,
        }
    return fields


def _example(job: FeatureJob, example: Example) -> dict[str, Any]:
    return {
        "tokens": job.text(example.tokens),
        "tokens_acts_list": [round(value, 4) for value in example.activations],
        "train_token_ind": example.peak,
        "is_repeated_datapoint": False,
    }


def _tokens(job: FeatureJob, by_target: list[TokenScores]) -> list[str]:
    """The tokens with the largest effects, which are summed over the targets."""
    total: dict[int, float] = {}
    for scores in by_target:
        for token, effect in scores:
            total[token] = total.get(token, 0.0) + effect
    order = sorted(total, key=lambda token: -abs(total[token]))
    return job.text(tuple(order[:N_LOGITS]))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
