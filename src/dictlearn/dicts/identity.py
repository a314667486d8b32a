"""The hash that identifies a dictionary, from its description and weights."""

from __future__ import annotations

import hashlib
import json

import torch

from dictlearn.dicts.dictionary import Dictionary


def sha256_of(dictionary: Dictionary) -> str:
    """SHA-256, in hexadecimal, of a dictionary's description and weights."""
    digest = hashlib.sha256(json.dumps(dictionary.to_json(), sort_keys=True).encode())
    for name, tensor in sorted(dictionary.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
