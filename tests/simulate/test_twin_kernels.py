"""From a file of kernels to kernels at any batch, on any device."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from cotenant.simulate.twin import kernels as kn
from cotenant.simulate.twin.kernels import KernelFileError, at_batch, read_traces
from cotenant.simulate.twin.specs import H100, L4, SPECS, V100, spec_of

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "kernels" / "v100_forward.csv"
HEAD = "model,batch,index,kind,bound,sms,duration_ns\n"


def write(path: Path, *rows: str, head: str = HEAD) -> Path:
    path.write_text(head + "".join(row + "\n" for row in rows))
    return path


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 6, 8, 16])
def test_the_batch_law_holds_kernel_by_kernel(tmp_path: Path, batch: int) -> None:
    rows = [
        ("compute", 30, 10_000), ("compute", 81, 20_000), ("memory", 30, 5_000), ("memory", 400, 7_000),
        ("unknown", 1, 3_000), ("unknown", 160, 9_000),
    ]  # fmt: skip
    path = write(tmp_path / "k.csv", *(f"m,4,{i},k,{b},{s},{d}" for i, (b, s, d) in enumerate(rows)))
    found = at_batch(read_traces(path, "m"), batch, V100)
    for n, (bound, sms, duration) in enumerate(rows):
        wanted = max(1.0, sms * batch / 4)
        c = math.ceil(wanted / 80) / math.ceil(sms / 80)
        factor = max(c, batch / 4) if bound == "memory" and batch > 4 else c
        assert found.loads[n] == wanted
        assert found.duration_ns[n] == pytest.approx(duration * factor)


def test_rows_may_come_in_any_order_and_columns_too(tmp_path: Path) -> None:
    head = "duration_ns,sms,bound,index,model,batch,kind,more\n"
    path = write(tmp_path / "k.csv", "200,1,compute,1,m,1,k,x", "100,2,memory,0,m,1,k,x", head=head)
    found = at_batch(read_traces(path, "m"), 1, V100)
    assert found.duration_ns.tolist() == [100, 200]
    assert found.kind.tolist() == [kn.MEMORY, kn.COMPUTE]


def test_of_several_traces_the_nearest_below_counts(tmp_path: Path) -> None:
    path = write(tmp_path / "k.csv", "m,2,0,k,compute,10,1000", "m,8,0,k,compute,70,5000")
    traces = read_traces(path, "m")
    spans = [at_batch(traces, batch, V100).duration_ns[0] for batch in (1, 2, 7, 8, 16)]
    assert spans == [1000, 1000, 1000, 5000, 10000]


@pytest.mark.parametrize(
    ("rows", "head", "message"),
    [
        (["m,4,0,k,compute,3"], HEAD.replace(",duration_ns", ""), "no column 'duration_ns'"),
        (["m,4,0,k,compute,3,x"], HEAD, "line 2: duration_ns must be a number, at least 1, not 'x'"),
        (["m,4,0,k,compute,3,5", "m,4,1,k,compute,nan,5"], HEAD, "line 3: sms must be a number"),
        (["m,4,0.5,k,compute,3,5"], HEAD, "line 2: index must be a whole number"),
        (["m,0,0,k,compute,3,5"], HEAD, "line 2: batch must be a whole number, at least 1"),
        (["m,4,0,k,heat,3,5"], HEAD, "line 2: bound must be one of compute, memory"),
        (["m,4,0,k,compute"], HEAD, "line 2: has no value for 'sms'"),
        (["b,4,0,k,compute,3,5", "a,4,0,k,compute,3,5"], HEAD, "has no model 'm'; models there: a, b"),
        (["m,4,0,k,compute,3,5", "m,4,0,k,compute,3,5"], HEAD, "batch 4 has two kernels with index 0"),
    ],
)  # fmt: skip
def test_a_bad_file_is_named_with_the_place(tmp_path: Path, rows: list[str], head: str, message: str) -> None:
    path = write(tmp_path / "k.csv", *rows, head=head)
    with pytest.raises(KernelFileError, match=r"k\.csv") as caught:
        read_traces(path, "m")
    assert message in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(KernelFileError, match=r"absent\.csv: cannot be read"):
        read_traces(tmp_path / "absent.csv", "m")


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("batch", [1, 4, 16])
def test_every_device_gives_sound_kernels(spec, batch: int) -> None:
    for model in ("mobilenetv2", "bert", "efficientnet"):
        found = at_batch(read_traces(EXAMPLE, model), batch, spec)
        assert (found.duration_ns > 0).all()
        assert ((found.bandwidth >= 0) & (found.bandwidth <= 1)).all()
        assert ((found.memory_time >= 0) & (found.memory_time <= 1)).all()
        assert (kn.clocks_alone(found, spec) <= 1).all()


def test_a_faster_device_is_faster_where_it_is_and_short_kernels_stay(tmp_path: Path) -> None:
    path = write(tmp_path / "k.csv", "m,1,0,k,compute,800,1000000", "m,1,1,k,memory,800,1000000",
                 "m,1,2,k,compute,1,2000")  # fmt: skip
    traces = read_traces(path, "m")
    here, there, small = (at_batch(traces, 1, spec).duration_ns for spec in (V100, H100, L4))
    compute, memory, short = here / there
    assert compute == pytest.approx(66.9 / 15.7, rel=0.25)  # whole waves
    assert memory == pytest.approx(3350 / 900)
    assert short == 1.0
    assert small[1] > here[1]


def test_an_unknown_device_lists_the_known_ones() -> None:
    assert spec_of("V100") is V100
    with pytest.raises(ValueError, match="known: v100, a100, h100, h200, l4"):
        spec_of("b300")


def test_the_example_holds_the_models_it_says() -> None:
    total = {m: float(np.sum(at_batch(read_traces(EXAMPLE, m), b, V100).duration_ns)) / 1e6
             for m, b in (("bert", 2), ("mobilenetv2", 4), ("resnet50", 4))}  # fmt: skip
    assert total == pytest.approx({"bert": 48.63, "mobilenetv2": 2.26, "resnet50": 6.50}, abs=0.01)
