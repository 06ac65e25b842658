"""Safetensors files with weights of the torch zoo's architectures."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from cotenant.execute.torch.weights import KEY, architecture_of, from_weights, save_weights  # noqa: E402
from cotenant.execute.torch.zoo import ZOO, blueprint  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.safetensors"


@pytest.mark.parametrize("name", sorted(ZOO))
def test_every_architecture_is_written_and_read_as_it_was(name: str, path: Path) -> None:
    save_weights(f"{name}-small", path, seed=3)
    expected, found = blueprint(name, small=True, seed=3), from_weights(path, None)
    assert (found.inputs, found.outputs) == (expected.inputs, expected.outputs)
    wanted = expected.module.state_dict()
    assert wanted.keys() == found.module.state_dict().keys()
    assert all(torch.equal(tensor, wanted[key]) for key, tensor in found.module.state_dict().items())


def test_element_types_are_converted_to_what_is_served(path: Path) -> None:
    save_weights("embedder-small", path, dtype=torch.bfloat16)
    assert {x.dtype for x in load_file(path).values()} == {torch.bfloat16}
    found = from_weights(path, None, torch.float32).module.state_dict()
    assert {x.dtype for x in found.values()} == {torch.float32}
    assert all(torch.equal(x.bfloat16(), load_file(path)[key]) for key, x in found.items())


def test_the_configured_architecture_goes_before_that_of_the_file(path: Path) -> None:
    save_weights("embedder-small", path)
    assert architecture_of(path, None) == "embedder-small"
    assert architecture_of(path, "dlrm") == "dlrm"
    save_file(load_file(path), path)
    with pytest.raises(ValueError, match=r"no architecture in its metadata; give `architecture`.*bert_base"):
        from_weights(path, None)


def test_other_tensors_are_named_with_what_was_expected(path: Path) -> None:
    save_weights("embedder-small", path)
    tensors = load_file(path)
    gone = sorted(key for key in tensors if key.startswith("stages.1."))
    first = next(key for key in tensors if key.endswith("word.weight"))
    wrong = {key: tensor for key, tensor in tensors.items() if key not in gone}
    wrong |= {"odd": torch.zeros(1), first: torch.zeros(3, 2)}
    save_file(wrong, path, {KEY: "embedder-small"})
    with pytest.raises(ValueError) as caught:
        from_weights(path, None)
    message = str(caught.value)
    for part in (
        "weights.safetensors",
        f"the {len(tensors)} of architecture 'embedder-small'",
        f"{len(gone)} missing",
        "stages.1.",
        f"and {len(gone) - 3} more",
        "1 unexpected (odd)",
        f"1 of another shape ({first} is [3, 2], expected {list(tensors[first].shape)})",
    ):
        assert part in message, message


@pytest.mark.parametrize("content", [b"", b"no tensors", b"\xff" * 64])
def test_a_file_of_something_else_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"weights.safetensors is not a safetensors file"):
        from_weights(path, "embedder")


def test_a_file_cut_short_or_gone_is_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="there is no file"):
        from_weights(path, "embedder")
    save_weights("dlrm-small", path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"weights.safetensors is not a safetensors file"):
        from_weights(path, None)
