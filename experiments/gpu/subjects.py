"""What is measured: the torch zoo and the stressors, loaded by the executor that serves; ready inputs."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np

from cotenant.domain import Variant
from cotenant.execute.model import ModelSettings, example_inputs
from cotenant.execute.torch.executor import TorchExecutor
from cotenant.execute.torch.model import Blueprint, TorchModel
from cotenant.execute.torch.stressors import LEVELS, PREFIX, RESOURCES, stressor
from cotenant.execute.torch.zoo import ZOO, blueprint, default_buckets
from cotenant.ports import Tensors

LARGEST_BATCH = {False: 16, True: 4}
"""By whether the models are small."""
SEED = 1
INPUTS = 4


@dataclass
class Subject:
    """A loaded model and ready inputs of its variants."""

    model: TorchModel
    variants: list[Variant]
    inputs: dict[Variant, list[Tensors]]

    def work(self, variant: Variant, which: int = 0) -> tuple[TorchModel, Variant, Tensors]:
        """What a driver starts."""
        return self.model, variant, self.inputs[variant][which]

    @property
    def middle(self) -> Variant:
        """The variant that stands for the model in pairs."""
        return self.variants[len(self.variants) // 2]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def load_zoo(executor: TorchExecutor, *, small: bool) -> dict[str, Subject]:
    """Every model of the zoo, at batches 1 to 16 (to 4 when small)."""
    found: dict[str, Subject] = {}
    for name in sorted(ZOO):
        say(f"loading {name}")
        buckets = {axis: (sizes[-1],) for axis, sizes in default_buckets(name).items()}
        settings = ModelSettings(name=name, max_batch=LARGEST_BATCH[small], buckets=buckets)
        found[name] = _load(executor, blueprint(name, small=small, seed=SEED), settings)
    return found


def load_stressors(executor: TorchExecutor) -> dict[str, Subject]:
    """One stressor per resource; its batches are its intensities."""
    say("loading stressors")
    return {
        resource: _load(executor, stressor(resource), ModelSettings(name=PREFIX + resource, max_batch=LEVELS))
        for resource in RESOURCES
    }


def _load(executor: TorchExecutor, made: Blueprint, settings: ModelSettings) -> Subject:
    executor.load(made, settings)
    model = executor.models[settings.name]
    variants = list(model.metadata.spec.variants())
    rng = np.random.default_rng(SEED)
    inputs = {v: [example_inputs(model.metadata, v, rng) for _ in range(INPUTS)] for v in variants}
    return Subject(model, variants, inputs)
