"""Figures of each source are those of its own text; those of all are means by the weights."""

import math

import pytest
import torch

from modules.mixed_validation import mixed_metrics, spread_sums
from modules.validation import validation_metrics

A = torch.tensor([300.0, 100.0, 400.0, 20.0, 10.0, 3.0], dtype=torch.float64)
B = torch.tensor([5000.0, 1000.0, 2000.0, 90.0, 30.0, 3.0], dtype=torch.float64)
NOTHING = torch.zeros(6, dtype=torch.float64)


def total(*sums: torch.Tensor) -> torch.Tensor:
    found = torch.zeros(len(sums) * 6, dtype=torch.float64)
    for source, of in enumerate(sums):  # in two micro-batches each
        found += 2 * spread_sums(of / 2, source, len(sums))
    return found


def test_each_source_has_its_own_figures_and_all_have_the_mean_by_weights_whatever_their_sizes() -> None:
    found = mixed_metrics(total(A, B), ["a", "b"], [3.0, 1.0])
    for name, sums in (("a", A), ("b", B)):
        own = validation_metrics(sums)
        assert {key: found[f"val/{name}/{key[4:]}"] for key in own} == pytest.approx(own)
    assert found["val/loss_clm"] == pytest.approx((3 * 3.0 + 5.0) / 4)
    assert found["val/perplexity"] == pytest.approx(math.exp(3.5))
    assert found["val/bits_per_byte"] == pytest.approx((3 * 3.0 + 5.0) / (3 * 4.0 + 2.0) / math.log(2))
    assert found["val/loss_mlm"] == pytest.approx((3 * 2.0 + 3.0) / 4)
    assert found["val/mlm_accuracy"] == pytest.approx((3 * 0.3 + 0.1) / 4)
    assert len(found) == 15


def test_a_source_that_holds_out_nothing_has_no_figures_and_no_part_in_those_of_all() -> None:
    found = mixed_metrics(total(A, NOTHING, B), ["a", "x", "b"], [1.0, 5.0, 1.0])
    assert found["val/loss_clm"] == pytest.approx(4.0)
    assert not any("/x/" in name for name in found)


def test_sources_without_weight_count_alike_if_no_other_holds_out_text() -> None:
    assert mixed_metrics(total(A, B), ["a", "b"], [0.0, 0.0])["val/loss_clm"] == pytest.approx(4.0)
    assert mixed_metrics(total(A, B), ["a", "b"], [1.0, 0.0])["val/loss_clm"] == pytest.approx(3.0)


def test_bytes_that_are_not_known_of_one_source_are_left_out_of_all() -> None:
    unknown = B.clone()
    unknown[2] = math.nan
    found = mixed_metrics(total(A, unknown), ["a", "b"], [1.0, 1.0])
    assert {name for name in found if "bits" in name} == {"val/a/bits_per_byte"}
