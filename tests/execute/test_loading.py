"""Factories and archives that are not what they should be: what is wrong is said, with the place."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from cotenant.clock import MonotonicClock  # noqa: E402
from cotenant.execute.model import ModelSettings  # noqa: E402
from cotenant.execute.torch.executor import TorchExecutor  # noqa: E402
from cotenant.execute.torch.load import from_archive, from_factory  # noqa: E402
from cotenant.execute.torch.zoo import blueprint  # noqa: E402

pytestmark = pytest.mark.torch

FACTORIES = """
import sys
import torch
from torch import nn


class Does(nn.Module):
    def __init__(self, what):
        super().__init__()
        self.what = what

    def forward(self, x):
        return self.what(x)


def fails(x):
    raise KeyError("layer 3")


ONE = {"x": torch.zeros(1, 4)}
def raises(): return Does(fails), ONE
def nothing(): return Does(lambda x: None), ONE
def words(): return Does(lambda x: ["a"]), ONE
def lone(): return Does(lambda x: x.sum()), ONE
def flat(): return Does(lambda x: x), {"x": torch.tensor(1.0)}
def brain(): return Does(lambda x: x.bfloat16()), ONE
def leaves(): sys.exit(3)
"""


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("raises", r"fails on its example inputs \(\[2, 4\]\): KeyError: 'layer 3'"),
        ("nothing", "gives NoneType; expected a tensor"),
        ("words", "gives list; expected a tensor"),
        ("lone", "gives tuple; expected .* rows as its first dimension"),
        ("flat", "'x' has no dimensions"),
        ("brain", "'output_0' has element type torch.bfloat16.*FP16"),
        ("leaves", "SystemExit: 3"),
        ("absent", "no attribute 'absent'"),
    ],
)
def test_a_factory_that_does_not_do_its_part(tmp_path: Path, factory: str, said: str) -> None:
    (tmp_path / "own.py").write_text(FACTORIES)
    with pytest.raises(ValueError, match=f"^own:{factory}: .*{said}"):
        from_factory(f"own:{factory}", tmp_path)


def test_a_module_that_cannot_be_imported_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("x = 1\nraise RuntimeError('no weights here')\n")
    with pytest.raises(ValueError, match="broken:f: RuntimeError: no weights here"):
        from_factory("broken:f", tmp_path)
    assert "cotenant_models.broken" not in sys.modules


def test_files_that_are_no_archives(tmp_path: Path) -> None:
    (tmp_path / "text.pt2").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.pt2 is cut short or no archive; expected what torch.export"):
        from_archive(tmp_path / "text.pt2")
    torch.save({"a": torch.zeros(1)}, tmp_path / "weights.pt2")
    with pytest.raises(ValueError, match=r"weights\.pt2 is no exported program.*safetensors"):
        from_archive(tmp_path / "weights.pt2")


def test_a_model_that_fails_at_the_sizes_it_should_serve_says_which(tmp_path: Path) -> None:
    executor = TorchExecutor(MonotonicClock())
    try:
        settings = ModelSettings(name="e", max_batch=2, buckets={"seq": [1024]})
        with pytest.raises(ValueError, match=r"'e' fails .*max_batch = 2, seq = \[1024\].*IndexError"):
            executor.load(blueprint("embedder", small=True), settings)
    finally:
        executor.close()
