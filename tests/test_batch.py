"""Batches: what an autoencoder's targets are, wherever the batch has gone."""

from __future__ import annotations

import pytest
import torch
from lightning.fabric.utilities import move_data_to_device

from dictlearn.train.normaliser import Normaliser
from dictlearn.types import Batch, Norms


def batch(targets: torch.Tensor | None) -> Batch:
    return Batch(torch.randn(6, 1, 4), targets, torch.arange(6), torch.arange(6))


def test_an_autoencoders_targets_are_its_sources_on_another_device_too():
    moved = move_data_to_device(batch(None), torch.device("meta"))
    assert moved.x_NSD.is_meta and moved.y_NTD is moved.x_NSD


def test_an_autoencoders_activations_are_normalised_once():
    normaliser = Normaliser(1, 1)
    normaliser.fit(batch(None))
    x_NSD, y_NTD = normaliser(move_data_to_device(batch(None), torch.device("cpu")))
    assert y_NTD is x_NSD


@pytest.mark.parametrize(
    ("convention", "scales"), [("sqrt_width", (1, 0.5)), ("unit", (0.25, 0.1))]
)
def test_known_norms_take_the_place_of_a_batchs(convention, scales):
    normaliser = Normaliser(1, 1, convention)
    normaliser.fit(batch(torch.randn(6, 1, 4)), [[Norms(2.0, 16.0)], [Norms(4.0, 100.0)]])
    found = (normaliser.input_scale_S.item(), normaliser.output_scale_T.item())
    assert found == pytest.approx(scales)


def test_rows_of_a_batch_keep_its_targets():
    whole = batch(torch.randn(6, 2, 4))
    part = whole.rows(2, 5)
    assert torch.equal(part.y_NTD, whole.y_NTD[2:5]) and part.tokens_N.tolist() == [2, 3, 4]
    assert batch(None).rows(0, 3).targets_NTD is None
