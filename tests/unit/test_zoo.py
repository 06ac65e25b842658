"""The zoo: every architecture, tiny, against the reference evaluator; and the cache of built files."""

from __future__ import annotations

import importlib
import multiprocessing
import re
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator

from cotenant import zoo
from cotenant.zoo import architectures as arch
from cotenant.zoo.build import RECIPES

Arrays = dict[str, np.ndarray[Any, Any]]

TINY: Mapping[str, Callable[[int], onnx.ModelProto]] = {
    "resnet18": partial(arch.resnet18, arch.ResnetSizes(side=32, widths=(8, 16), n_classes=10)),
    "mobilenet": partial(arch.mobilenet, arch.MobilenetSizes(side=32, widths=(8, 16, 32), n_classes=10)),
    "vit_tiny": partial(
        arch.vit_tiny, arch.VitSizes(side=32, patch=8, width=24, n_blocks=2, n_heads=3, n_classes=10)
    ),
    "bert_mini": partial(
        arch.bert_mini, arch.BertSizes(n_words=50, longest=16, width=24, n_blocks=2, n_heads=3)
    ),
    "dlrm": partial(arch.dlrm, arch.DlrmSizes(n_rows=100, width=8, n_dense=4, n_sparse=5, hidden=16)),
    "gpt_mini": partial(arch.gpt_mini, arch.GptSizes(n_words=50, length=6, width=24, n_blocks=2, n_heads=3)),
    "wide_mlp": partial(arch.wide_mlp, arch.WideMlpSizes(n_features=8, width=32, n_layers=2)),
    "echo": partial(arch.echo, arch.EchoSizes()),
}


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def ranges(model: onnx.ModelProto) -> dict[str, tuple[int, int]]:
    """Valid integers of each input (low, high exclusive), as a load generator reads them."""
    found = {}
    for entry in model.metadata_props:
        low, high = entry.value.split(",")
        found[entry.key.removeprefix("cotenant.range.")] = (int(low), int(high))
    return found


def inputs_of(model: onnx.ModelProto, *, batch: int, seq: int = 7, seed: int = 0) -> Arrays:
    """Random valid inputs, from the file alone."""
    rng = np.random.default_rng(seed)
    sizes = {"batch": batch, "seq": seq}
    made: Arrays = {}
    for value in model.graph.input:
        tensor = value.type.tensor_type
        shape = [sizes[d.dim_param] if d.dim_param else d.dim_value for d in tensor.shape.dim]
        if tensor.elem_type == onnx.TensorProto.INT64:
            made[value.name] = rng.integers(*ranges(model)[value.name], shape)
        else:
            made[value.name] = rng.standard_normal(shape, np.float32)
    return made


def test_every_name_has_a_tiny_twin() -> None:
    assert set(TINY) == set(zoo.NAMES)
    assert {"resnet18", "mobilenet", "vit_tiny", "bert_mini", "dlrm", "gpt_mini", "echo"} <= set(zoo.NAMES)


@pytest.mark.parametrize("name", zoo.NAMES)
def test_a_tiny_model_is_valid_and_answers_as_the_reference_does(name: str) -> None:
    model = TINY[name](1)
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version <= 10
    assert [(o.domain, o.version <= 21) for o in model.opset_import] == [("", True)]
    inputs = inputs_of(model, batch=2)
    for ours, reference in zip(
        session(model).run(None, inputs), ReferenceEvaluator(model).run(None, inputs), strict=True
    ):
        assert ours.shape == reference.shape
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, reference, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", zoo.NAMES)
def test_answers_are_finite_and_depend_on_the_input(name: str) -> None:
    model = TINY[name](1)
    for output in session(model).run(None, inputs_of(model, batch=4)):
        assert np.isfinite(output).all()
        assert 1e-3 < np.abs(output).max() < 100
        assert np.ptp(output, axis=0).max() > 1e-3


@pytest.mark.parametrize("name", zoo.NAMES)
def test_a_row_is_answered_alike_alone_and_in_a_batch(name: str) -> None:
    model = TINY[name](1)
    runner, inputs = session(model), inputs_of(model, batch=3)
    together = runner.run(None, inputs)
    for row in range(3):
        alone = runner.run(None, {key: value[row : row + 1] for key, value in inputs.items()})
        for ours, whole in zip(alone, together, strict=True):
            np.testing.assert_allclose(ours[0], whole[row], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", zoo.NAMES)
def test_the_batch_axis_is_dynamic_and_integers_have_a_range(name: str) -> None:
    model = TINY[name](1)
    for value in [*model.graph.input, *model.graph.output]:
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    integers = {
        value.name
        for value in model.graph.input
        if value.type.tensor_type.elem_type == onnx.TensorProto.INT64
    }
    assert set(ranges(model)) == integers


@pytest.mark.parametrize("name", ["bert_mini", "dlrm", "gpt_mini"])
def test_both_ends_of_a_range_are_valid(name: str) -> None:
    model = TINY[name](1)
    for end in (0, 1):
        inputs = inputs_of(model, batch=1)
        for key, bounds in ranges(model).items():
            inputs[key][:] = bounds[end] - end
        session(model).run(None, inputs)


def test_padding_with_mask_zero_changes_no_answer_of_real_positions() -> None:
    runner = session(TINY["bert_mini"](1))
    rng = np.random.default_rng(3)
    ids, mask = rng.integers(0, 50, (2, 7)), np.ones((2, 7), np.int64)
    hidden, pooled = runner.run(["hidden", "pooled"], {"input_ids": ids, "attention_mask": mask})
    for filler in (0, 49):
        padded_ids = np.pad(ids, ((0, 1), (0, 9)), constant_values=filler)
        padded = {"input_ids": padded_ids, "attention_mask": np.pad(mask, ((0, 1), (0, 9)))}
        longer, same_pooled = runner.run(["hidden", "pooled"], padded)
        assert longer.shape == (3, 16, 24)
        assert np.isfinite(longer).all()
        np.testing.assert_allclose(longer[:2, :7], hidden, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(same_pooled[:2], pooled, rtol=1e-4, atol=1e-5)


def test_gpt_sees_every_position_of_its_prompt() -> None:
    model = TINY["gpt_mini"](1)
    runner, inputs = session(model), inputs_of(model, batch=1)
    (before,) = runner.run(None, inputs)
    inputs["input_ids"][0, 0] = (inputs["input_ids"][0, 0] + 1) % 50
    (after,) = runner.run(None, inputs)
    assert np.abs(after - before).max() > 1e-3


def test_echo_gives_back_what_it_gets() -> None:
    row = np.arange(32, dtype=np.float32).reshape(2, 16)
    (output,) = session(zoo.build("echo")).run(["output"], {"input": row})
    np.testing.assert_array_equal(output, row)


@pytest.mark.parametrize("name", sorted(set(zoo.NAMES) - {"echo"}))
def test_the_seed_decides_the_bytes(name: str) -> None:
    first, again, other = (TINY[name](seed).SerializeToString() for seed in (1, 1, 2))
    assert first == again
    assert first != other


# --- names and files ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "nearest"), [("resnet", "resnet18"), ("bert", "bert_mini"), ("gtp_mini", "gpt_mini")]
)
def test_an_unknown_name_is_refused_with_the_nearest(tmp_path: Path, name: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"did you mean '{nearest}'")):
        zoo.ensure(name, tmp_path)
    with pytest.raises(ValueError, match=r"known: .*echo"):
        zoo.ensure("../echo", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_default_buckets_name_dynamic_axes() -> None:
    assert zoo.DEFAULT_BUCKETS == {"bert_mini": {"seq": (32, 64, 128)}}
    assert max(zoo.DEFAULT_BUCKETS["bert_mini"]["seq"]) <= arch.BertSizes().longest


def test_a_file_is_made_once_under_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zoo.ensure("echo", tmp_path / "new" / "folder")
    assert re.fullmatch(r"echo-v\d+\.onnx", path.name)
    assert path == zoo.path_of("echo", tmp_path / "new" / "folder")
    made_at = path.stat().st_mtime_ns
    assert zoo.ensure("echo", path.parent) == path
    assert path.stat().st_mtime_ns == made_at
    monkeypatch.setattr(importlib.import_module("cotenant.zoo.build"), "RECIPE_VERSION", 999)
    assert zoo.ensure("echo", path.parent).name == "echo-v999.onnx"


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    in_the_way = zoo.path_of("echo", tmp_path)
    in_the_way.mkdir()
    with pytest.raises(OSError, match="directory"):
        zoo.ensure("echo", tmp_path)
    assert list(tmp_path.iterdir()) == [in_the_way]


def ensure_together(barrier: Barrier, cache_dir: Path) -> None:
    barrier.wait(30)
    zoo.ensure("mobilenet", cache_dir)


def test_two_processes_that_build_at_once_leave_one_valid_file(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    builders = [context.Process(target=ensure_together, args=(barrier, tmp_path)) for _ in range(2)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join(60)
    assert [builder.exitcode for builder in builders] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == [zoo.path_of("mobilenet", tmp_path).name]
    model = onnx.load(str(zoo.path_of("mobilenet", tmp_path)))
    (logits,) = session(model).run(None, inputs_of(model, batch=1))
    assert logits.shape == (1, 1000)
    assert model.SerializeToString() == RECIPES["mobilenet"]().SerializeToString()
