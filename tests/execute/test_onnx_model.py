"""What a model file says of itself, and which files are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_models import FLOAT, INT64, double, lookup, save

from cotenant.catalogue import OnnxModels, places
from cotenant.config import load_scenario
from cotenant.domain import JobClass, Variant
from cotenant.execute.model import ModelSettings, example_inputs, row_buckets
from cotenant.execute.onnx_model import inspect
from cotenant.execute.onnx_session import open_session
from cotenant.profile.records import cpu_fingerprint
from cotenant.user_models import UserModels


def settings(**changes: object) -> ModelSettings:
    return ModelSettings(**{"name": "m", **changes})  # type: ignore[arg-type]


def test_axes_are_found_and_named(tmp_path):
    metadata = inspect(
        double(tmp_path / "m.onnx", ["N", "seq", 3]),
        settings(buckets={"seq": [64, 32]}, max_batch=6, slo_ns=5, job_class=JobClass.PROTECTED),
    )
    (x,) = metadata.inputs
    assert metadata.batched
    assert x.shape == (-1, -1, 3)
    assert x.axes == ("batch", "seq", None)
    assert metadata.outputs[0].axes == ("batch", "seq", None)
    assert metadata.spec.row_buckets == (1, 2, 4, 6)
    assert metadata.spec.axis_buckets == (("seq", (32, 64)),)
    assert (metadata.spec.slo_ns, metadata.spec.job_class) == (5, JobClass.PROTECTED)


@pytest.mark.parametrize(
    ("shape", "output"),
    [([1, 4], None), ([4, 4], None), (["n", "n"], None), (["b", 4], [1, 4]), ([3, "b"], None), ([], None)],
)
def test_a_file_without_batch_axis_takes_one_row(tmp_path, shape, output):
    metadata = inspect(double(tmp_path / "m.onnx", shape, output), settings())
    assert not metadata.batched
    assert metadata.spec.max_batch == 1
    assert metadata.spec.row_buckets == (1,)


def two_inputs(path: Path, first: list[object], second: list[object], output: list[object]) -> Path:
    node = helper.make_node("Add", ["a", "b"], ["y"])
    return save(path, [node], [("a", FLOAT, first), ("b", FLOAT, second)], [("y", FLOAT, output)])


@pytest.mark.parametrize(
    ("first", "second", "batched"),
    [(["N", 4], ["N", 4], True), ([None, 4], [None, 4], True), (["N", 4], [None, 4], True),
     (["N", 4], ["M", 4], False), (["N", 4], [1, 4], False)],
)  # fmt: skip
def test_the_batch_axis_must_be_one_for_all_inputs(tmp_path, first, second, batched):
    path = two_inputs(tmp_path / "m.onnx", first, second, ["N", 4])
    assert inspect(path, settings()).batched is batched


def test_a_declared_first_axis_is_no_batch(tmp_path):
    metadata = inspect(double(tmp_path / "m.onnx", ["seq", 4]), settings(buckets={"seq": [8]}))
    assert not metadata.batched
    assert metadata.spec.variants() == (Variant("m", 1, (("seq", 8),)),)


def test_ranges_are_read_and_bound_the_examples(tmp_path):
    metadata = inspect(lookup(tmp_path / "m.onnx", 100, {"x": "90,100"}), settings(max_batch=64))
    assert (metadata.inputs[0].low, metadata.inputs[0].high) == (90, 100)
    x = example_inputs(metadata, Variant("m", 64), np.random.default_rng(0))["x"]
    assert x.shape == (64,)
    assert x.dtype == np.int64
    assert x.min() >= 90
    assert x.max() < 100


def test_row_buckets_end_with_the_largest_batch():
    assert [row_buckets(n) for n in (1, 2, 3, 8, 12)] == [
        (1,),
        (1, 2),
        (1, 2, 3),
        (1, 2, 4, 8),
        (1, 2, 4, 8, 12),
    ]


# --- refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "a/b"}, "may hold letters"),
        ({"name": ""}, "may hold letters"),
        ({"max_batch": 0}, "max_batch is 0"),
        ({"buckets": {"sq": [8]}}, "buckets names axis 'sq'; the dynamic axes of the file are: seq"),
        ({"buckets": {"seq": []}}, "expected sizes of at least 1"),
        ({"buckets": {"seq": [0, 8]}}, "expected sizes of at least 1"),
    ],
)
def test_bad_settings_are_refused_by_name(tmp_path, changes, message):
    path = double(tmp_path / "model.onnx", ["batch", "seq"])
    with pytest.raises(ValueError, match=message) as caught:
        inspect(path, settings(**changes))
    assert str(caught.value).startswith("model file model.onnx: ")


@pytest.mark.parametrize("text", ["1", "a,b", "5,5", "1,2,3"])
def test_a_malformed_range_is_refused(tmp_path, text):
    with pytest.raises(ValueError, match=r"cotenant\.range\.x is"):
        inspect(lookup(tmp_path / "m.onnx", ranges={"x": text}), settings())


@pytest.mark.parametrize("content", [b"", b"\x00\x01nonsense" * 50, b"{}"])
def test_a_corrupt_file_is_named(tmp_path, content):
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model file broken\.onnx: "):
        inspect(path, settings())


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.onnx: no such file"):
        inspect(tmp_path / "none.onnx", settings())


def test_a_file_outside_of_the_root_is_refused(tmp_path):
    root = tmp_path / "models"
    root.mkdir()
    path = double(tmp_path / "m.onnx", ["batch", 4])
    (root / "link.onnx").symlink_to(path)
    for bad in (path, root / "link.onnx", root / ".." / "m.onnx"):
        with pytest.raises(ValueError, match="lies outside of the model folder"):
            inspect(bad, settings(), root)
    inspect(double(root / "m.onnx", ["batch", 4]), settings(), root)


def with_external(path: Path, location: str, nested: bool = False) -> Path:
    """A model with one tensor kept at `location`, in the graph itself or in a branch of an If."""
    tensor = TensorProto(name="w", data_type=FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    add = helper.make_node("Add", ["x", "w"], ["y"])
    x, y = (helper.make_tensor_value_info(name, FLOAT, ["batch", 4]) for name in ("x", "y"))
    if nested:
        branch = helper.make_graph([add], "branch", [], [y], [tensor])
        go = helper.make_tensor_value_info("go", TensorProto.BOOL, ["batch"])
        node = helper.make_node("If", ["go"], ["y"], then_branch=branch, else_branch=branch)
        graph = helper.make_graph([node], "g", [x, go], [y])
    else:
        graph = helper.make_graph([add], "g", [x], [y], [tensor])
    path.write_bytes(helper.make_model(graph, ir_version=8).SerializeToString())
    return path


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    "location",
    [
        "/etc/passwd",
        "../w.bin",
        "a/../../w.bin",
        "C:\\w.bin",
        "..\\w.bin",
        "",
        "*/_ORT_MEM_ADDR_/*",
        "link.bin",
    ],
)
def test_external_data_must_stay_in_the_folder_of_the_model(tmp_path, location, nested):
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "w.bin").write_bytes(bytes(16))
    (folder / "link.bin").symlink_to(tmp_path / "w.bin")
    with pytest.raises(ValueError, match=r"m\.onnx: .*tensor 'w'"):
        inspect(with_external(folder / "m.onnx", location, nested), settings())


def test_external_data_beside_the_model_is_fine(tmp_path):
    (tmp_path / "w.bin").write_bytes(bytes(16))
    assert inspect(with_external(tmp_path / "m.onnx", "w.bin"), settings()).batched


def test_what_cannot_be_served_is_refused(tmp_path):
    node = helper.make_node("Identity", ["x"], ["y"])
    path = save(
        tmp_path / "m.onnx", [node], [("x", TensorProto.BFLOAT16, [1])], [("y", TensorProto.BFLOAT16, [1])]
    )
    with pytest.raises(ValueError, match="element type BFLOAT16, which cannot be served"):
        inspect(path, settings())
    node = helper.make_node("SequenceConstruct", ["x"], ["y"])
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", FLOAT, [1])],
        [helper.make_tensor_sequence_value_info("y", FLOAT, [1])],
    )
    onnx.save(helper.make_model(graph), path)
    with pytest.raises(ValueError, match="output 'y' is a sequence_type; only tensors"):
        inspect(path, settings())


def test_an_output_that_cannot_be_cut_back_is_refused_with_buckets_only(tmp_path):
    node = helper.make_node("NonZero", ["x"], ["y"])
    path = save(tmp_path / "m.onnx", [node], [("x", FLOAT, ["n"])], [("y", INT64, [1, "found"])])
    assert not inspect(path, settings()).batched
    with pytest.raises(ValueError, match="dynamic axis 'found', which is no axis of an input"):
        inspect(path, settings(buckets={"n": [8]}))


def test_a_link_to_a_model_does_not_bring_in_data_beside_the_link(tmp_path):
    """What is checked is what is read: the data beside the file, not beside the link."""
    models, elsewhere = tmp_path / "models", tmp_path / "elsewhere"
    for folder, byte in ((models, 1.0), (elsewhere, 2.0)):
        folder.mkdir()
        (folder / "w.bin").write_bytes(np.full(4, byte, np.float32).tobytes())
    path = with_external(models / "m.onnx", "w.bin")
    link = elsewhere / "m.onnx"
    link.symlink_to(path)
    inspect(link, settings())
    (found,) = open_session(link, 1).run(None, {"x": np.zeros((1, 4), np.float32)})
    assert found.tolist() == [[1.0] * 4]


@pytest.mark.parametrize("location", ["../w.bin", "link.bin"])
def test_a_model_with_data_outside_of_its_folder_is_not_served(tmp_path, location):
    """The whole way: the configuration is fine, the file is not, and no session of it is made."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "w.bin").write_bytes(bytes(16))
    (folder / "link.bin").symlink_to(tmp_path / "w.bin")
    with_external(folder / "m.onnx", location)
    config = folder / "server.toml"
    config.write_text('[[model]]\nname = "m"\nsource = "m.onnx"\n')
    models = OnnxModels(
        load_scenario(config), places(tmp_path / "store"), cpu_fingerprint([], 1), UserModels(folder)
    )
    with pytest.raises(ValueError, match=r"m\.onnx: .*tensor 'w'"):
        models.find("m")
