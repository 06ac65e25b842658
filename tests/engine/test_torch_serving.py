"""Torch models behind the same engine: loaded, profiled, served, loaded anew."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import numpy as np
import pytest

from cotenant.assemble import make_engine, prepare
from cotenant.catalogue import places
from cotenant.clock import MonotonicClock
from cotenant.config import ConfigError, load_scenario
from cotenant.domain import OutcomeKind
from cotenant.engine_client import Call, EngineClient, Reply
from cotenant.execute.model import example_inputs
from cotenant.local_link import LocalLink
from cotenant.profile.measure import Budget

CONFIG = """
[device]
lanes = 2
[[model]]
name = "words"
source = "torch:embedder-small"
slo_ms = 2000
max_batch = 2
[[model]]
name = "pictures"
source = "torch:resnet50-small"
slo_scale = 50
slo_ms = 2000
max_batch = 2
"""
QUICK = Budget(per_variant_s=0.02, min_runs=2)


def write(tmp_path: Path, text: str = CONFIG) -> Path:
    path = tmp_path / "server.toml"
    path.write_text(text)
    return path


@pytest.mark.torch
def test_torch_models_are_served_and_answer_as_the_module_does(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from cotenant.execute.torch.zoo import blueprint

    prepared = prepare(load_scenario(write(tmp_path)), places(tmp_path), budget=QUICK)
    rng = np.random.default_rng(3)
    inputs = {}
    for name, metadata in prepared.metadata.items():
        smallest = metadata.spec.variants()[0]
        inputs[name] = (example_inputs(metadata, smallest, rng), smallest.axes)

    async def serve() -> list[tuple[str, Reply]]:
        clock = MonotonicClock()
        engine = make_engine(prepared, clock=clock)
        engine.start()
        client = EngineClient(LocalLink(engine, clock))
        assert await client.unload("words") is None
        assert await client.load("words") is None

        async def ask(name: str) -> tuple[str, Reply]:
            tensors, axes = inputs[name]
            call = Call(
                id=client.new_id(), model=name, inputs=tensors, rows=1, axes=axes, arrived_at=client.now()
            )
            return name, await asyncio.wait_for(client.infer(call), 20)

        return await asyncio.gather(*(ask(name) for name in inputs for _ in range(5)))

    replies = asyncio.run(serve())
    prepared.executor.close()
    sources = {"words": "embedder", "pictures": "resnet50"}
    for name, reply in replies:
        assert reply.outcome.kind is OutcomeKind.OK
        assert reply.outputs is not None
        module = blueprint(sources[name], small=True).module
        with torch.inference_mode():
            (expected,) = module(*[torch.from_numpy(array) for array in inputs[name][0].values()])
        (found,) = reply.outputs.values()
        assert np.allclose(found, expected.numpy(), rtol=1e-4, atol=1e-5)
    assert prepared.metadata["words"].spec.slo_ns == 2_000_000_000


@pytest.mark.torch
def test_an_unknown_torch_model_names_the_known_ones(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    path = write(tmp_path, '[[model]]\nname = "x"\nsource = "torch:resnet9000"\n')
    with pytest.raises(ConfigError, match="there is no torch model 'resnet9000'; there are: bert_base"):
        prepare(load_scenario(path), places(tmp_path))


def test_without_torch_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name == "cotenant.torch_runtime"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConfigError, match=r"needs torch.*make torch"):
        prepare(load_scenario(write(tmp_path)), places(tmp_path))


def test_torch_and_onnx_models_do_not_share_a_device(tmp_path: Path) -> None:
    path = write(tmp_path, CONFIG + '[[model]]\nname = "other"\nsource = "zoo:echo"\n')
    with pytest.raises(ConfigError, match=r"torch models .words, pictures. and others .other."):
        prepare(load_scenario(path), places(tmp_path))


FACTORY = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU()), {"x": torch.zeros(1, 4)}

def wrong():
    return nn.Linear(4, 3)
"""
OWN = """
[server]
allow_code = true
[device]
lanes = 1
[[model]]
name = "own"
source = "SOURCE"
slo_ms = 2000
max_batch = 2
"""


def answer(path: Path, tmp_path: Path, array: np.ndarray) -> np.ndarray:
    prepared = prepare(load_scenario(path), places(tmp_path), budget=QUICK)

    async def ask() -> Reply:
        clock = MonotonicClock()
        engine = make_engine(prepared, clock=clock)
        engine.start()
        client = EngineClient(LocalLink(engine, clock))
        (name,) = [spec.name for spec in prepared.metadata["own"].inputs]
        call = Call(
            id="1", model="own", inputs={name: array}, rows=len(array), axes=(), arrived_at=client.now()
        )
        return await asyncio.wait_for(client.infer(call), 20)

    reply = asyncio.run(ask())
    prepared.executor.close()
    assert reply.outputs is not None
    (found,) = reply.outputs.values()
    return found


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["factory", "archive"])
def test_a_users_own_torch_model(tmp_path: Path, kind: str) -> None:
    torch = pytest.importorskip("torch")
    (tmp_path / "own.py").write_text(FACTORY)
    namespace: dict[str, object] = {}
    exec(FACTORY, namespace)
    module, _ = namespace["build"]()  # type: ignore[operator]
    if kind == "archive":
        rows = torch.export.Dim("rows", min=1, max=64)
        program = torch.export.export(module, (torch.zeros(3, 4),), dynamic_shapes=({0: rows},))
        torch.export.save(program, tmp_path / "own.pt2")
    source = {"factory": "own:build", "archive": "own.pt2"}[kind]
    path = write(tmp_path, OWN.replace("SOURCE", source))
    array = np.random.default_rng(1).standard_normal((2, 4)).astype(np.float32)
    with torch.inference_mode():
        expected = module(torch.from_numpy(array)).numpy()
    assert np.allclose(answer(path, tmp_path, array), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("source", "wanted"),
    [("own:wrong", "a factory returns"), ("own:absent", "absent"), ("gone.pt2", "there is no file")],
)
def test_a_users_own_model_that_cannot_be_loaded_says_why(tmp_path: Path, source: str, wanted: str) -> None:
    pytest.importorskip("torch")
    (tmp_path / "own.py").write_text(FACTORY)
    with pytest.raises(ConfigError, match=wanted):
        prepare(load_scenario(write(tmp_path, OWN.replace("SOURCE", source))), places(tmp_path))


@pytest.mark.parametrize("source", ["own:build", "own.pt2"])
def test_sources_that_carry_code_need_permission(tmp_path: Path, source: str) -> None:
    text = OWN.replace("SOURCE", source).replace("allow_code = true", "allow_code = false")
    with pytest.raises(ConfigError, match="allow_code"):
        load_scenario(write(tmp_path, text))


@pytest.mark.torch
@pytest.mark.parametrize("said", ["in the configuration", "by the file"])
def test_weights_of_a_built_in_architecture_are_served_without_permission(tmp_path: Path, said: str) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file, save_file

    from cotenant.execute.torch.weights import save_weights
    from cotenant.execute.torch.zoo import blueprint

    save_weights("vit_b16-small", tmp_path / "own.safetensors", seed=5)
    source = "own.safetensors"
    if said == "in the configuration":
        save_file(load_file(tmp_path / "own.safetensors"), tmp_path / "own.safetensors")
        source += '"\narchitecture = "vit_b16-small'
    text = OWN.replace("SOURCE", source).replace("allow_code = true", "")
    module = blueprint("vit_b16", small=True, seed=5).module
    array = np.random.default_rng(1).standard_normal((2, 3, 64, 64)).astype(np.float32)
    with torch.inference_mode():
        (expected,) = module(torch.from_numpy(array))
    found = answer(write(tmp_path, text), tmp_path, array)
    assert np.allclose(found, expected.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.torch
def test_the_hash_of_weights_follows_from_the_file_and_the_architecture(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from cotenant.execute.torch.weights import save_weights
    from cotenant.torch_runtime import TorchRuntime

    def found(architecture: str, seed: int) -> str:
        save_weights("embedder-small", tmp_path / "own.safetensors", seed=seed)
        text = OWN.replace("SOURCE", f'own.safetensors"\narchitecture = "{architecture}')
        scenario = load_scenario(write(tmp_path, text))
        runtime = TorchRuntime(scenario, places(tmp_path))
        runtime.executor.close()
        return runtime._source.hash(scenario.models[0])

    hashes = [found("embedder-small", 1), found("embedder-small", 2), found("embedder", 1)]
    assert len(set(hashes)) == 3
    assert found("embedder-small", 1) == hashes[0]


@pytest.mark.torch
@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("gone.safetensors", "there is no file"),
        ("text.safetensors", "text.safetensors is not a safetensors file"),
        ('own.safetensors"\narchitecture = "resnet9', "no architecture 'resnet9'.*bert_base.*NAME-small"),
        ('own.safetensors"\narchitecture = "embedder', "not the .* of architecture 'embedder'"),
    ],
)
def test_weights_that_cannot_be_loaded_say_why(tmp_path: Path, source: str, wanted: str) -> None:
    pytest.importorskip("torch")
    from cotenant.execute.torch.weights import save_weights

    save_weights("embedder-small", tmp_path / "own.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    with pytest.raises(ConfigError, match=wanted):
        prepare(load_scenario(write(tmp_path, OWN.replace("SOURCE", source))), places(tmp_path))
