"""Models counted as kernels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from cotenant import zoo
from cotenant.simulate.twin.kernels import COMPUTE, COPY_IN, COPY_OUT, MEMORY, Kernels
from cotenant.simulate.twin.operators import FLOOR_NS, TENSOR_SHARE, Tape
from cotenant.simulate.twin.specs import H100, H200, L4, SPECS, V100
from cotenant.simulate.twin.zoo import MODELS, analytic


def at(name: str, rows: int, spec=H100, **sizes: int) -> Kernels:
    model = analytic(name)
    return model.at(rows, {axis: values[-1] for axis, values in model.axes.items()} | sizes, spec)


def span_ms(kernels: Kernels) -> float:
    return float(kernels.duration_ns.sum()) / 1e6


def test_every_model_of_the_built_in_zoo_is_there() -> None:
    assert set(zoo.NAMES) <= set(MODELS)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("name", MODELS)
def test_kernels_are_sound_and_grow_with_the_batch(name: str, spec) -> None:
    spans = []
    for rows in (1, 2, 3, 8, 32):
        found = at(name, rows, spec)
        assert found.kind[0] == COPY_IN
        assert found.kind[-1] == COPY_OUT
        assert (found.duration_ns >= FLOOR_NS).all()
        assert ((found.bandwidth >= 0) & (found.bandwidth <= 1)).all()
        assert ((found.memory_time >= 0) & (found.memory_time <= 1)).all()
        assert len(found) == len(at(name, 1, spec))
        spans.append(span_ms(found))
    for fewer, more in itertools.pairwise(spans):
        assert more > 0.97 * fewer
    assert spans[-1] / spans[0] < 1.2 * 32


def test_large_models_on_large_devices_are_where_they_should_be() -> None:
    """Within about a factor of two of what tuned libraries reach."""
    assert 1.0 < span_ms(at("resnet50", 32)) < 4.0
    assert 3.0 < span_ms(at("bert_base", 32, seq=512)) < 20.0
    assert span_ms(at("bert_base", 8, seq=128)) < 0.5 * span_ms(at("bert_base", 8, seq=512))
    assert span_ms(at("vit_base", 32, L4)) > 4 * span_ms(at("vit_base", 32))


def test_reading_weights_is_bound_by_memory_and_follows_the_bandwidth() -> None:
    found = at("wide_mlp", 1)
    wide = slice(2, 6)
    assert (found.kind[wide] == MEMORY).all()
    assert (found.bandwidth[wide] > 0.5).all()
    ratio = span_ms(at("wide_mlp", 1)) / span_ms(at("wide_mlp", 1, H200))
    assert 1.05 < ratio < H200.bytes_per_s / H100.bytes_per_s


def test_a_large_product_takes_its_operations_over_the_peak() -> None:
    tape = Tape(V100)
    tape.product(128 * 80, 128 * 8, 4096)
    found = tape.kernels()
    expected = 2 * 128 * 80 * 128 * 8 * 4096 / (V100.tensor_flop_per_s * TENSOR_SHARE) * 1e9
    assert found.duration_ns[0] == pytest.approx(expected + FLOOR_NS)
    assert found.loads[0] == 640
    assert found.kind[0] == COMPUTE


def test_small_products_use_few_sms_and_long_inner_dimensions_are_split() -> None:
    tape = Tape(H100)
    tape.product(16, 64, 128)
    tape.product(16, 64, 8192)
    few, split = tape.kernels().loads
    assert few == 1
    assert split > few


def test_activations_that_fit_the_cache_take_no_memory_bandwidth() -> None:
    tape = Tape(H100)
    tape.elementwise(1_000_000)
    tape.elementwise(100_000_000)
    found = tape.kernels()
    assert found.bandwidth[0] == 0
    assert found.bandwidth[1] > 0.6
    assert np.diff(found.duration_ns)[0] > 0


def test_an_unknown_name_is_told_its_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'resnet50'"):
        analytic("resnet5")
