"""`cotenant.model`: declarations, and calling what it makes without a server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import cotenant
from cotenant.domain import NS_PER_MS, JobClass

ROW = np.zeros((1, 3), np.float32)


@cotenant.model(slo_ms=50, max_batch=4, example=ROW)
def centred(x: np.ndarray) -> dict[str, np.ndarray]:
    """Less its mean."""
    return {"y": x - x.mean(1, keepdims=True)}


def test_it_keeps_the_functions_name_and_words() -> None:
    assert (centred.__name__, centred.__doc__) == ("centred", "Less its mean.")
    settings = centred.declaration.settings
    assert (settings.name, settings.slo_ns, settings.max_batch) == ("centred", 50 * NS_PER_MS, 4)
    assert settings.job_class is JobClass.STANDARD


def test_a_batch_and_a_single_row_give_the_same_and_lists_will_do() -> None:
    batch = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(centred(batch)["y"], [[-1, 0, 1], [-1, 0, 1]])
    np.testing.assert_array_equal(centred(x=batch[1])["y"], [-1, 0, 1])
    np.testing.assert_array_equal(centred([3, 4, 5])["y"], [-1, 0, 1])


def test_a_lone_array_comes_back_as_an_array() -> None:
    double = cotenant.model(name="double", example=ROW)(lambda x: 2 * x)
    assert double([1, 2, 3]).tolist() == [2, 4, 6]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: centred(np.zeros((2, 3))), TypeError, "input 'x' is float64; expected float32"),
        (lambda: centred(np.zeros((2, 4), np.float32)), ValueError, r"shape \[2, 4\]; expected \[-1, 3\]"),
        (lambda: centred(np.zeros((5, 3), np.float32)), ValueError, "5 rows exceed max_batch 4"),
        (lambda: centred(), TypeError, "missing a required argument: 'x'"),
        (lambda: centred(ROW, y=1), TypeError, "unexpected keyword argument 'y'"),
    ],
)
def test_what_a_server_would_refuse_is_refused(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_the_callers_arrays_are_left_alone_and_answers_keep() -> None:
    @cotenant.model(example=ROW)
    def worn(x: np.ndarray) -> np.ndarray:
        x += 1
        return x

    given = np.zeros((1, 3), np.float32)
    first = worn(given)
    worn(np.full((1, 3), 9, np.float32))
    assert given.sum() == 0
    assert first.tolist() == [[1, 1, 1]]


def test_padding_is_that_of_a_server() -> None:
    seen: list[tuple[int, ...]] = []

    @cotenant.model(max_batch=8, inputs={"ids": ("int64", ["seq"])}, buckets={"seq": [4, 8]})
    def next_ids(ids: np.ndarray) -> dict[str, np.ndarray]:
        seen.append(ids.shape)
        return {"ids": ids + 1}

    assert next_ids(np.array([[1, 2, 3]] * 3))["ids"].tolist() == [[2, 3, 4]] * 3
    assert seen[-1] == (4, 4)
    with pytest.raises(ValueError, match="axis 'seq' is 9, but its largest bucket is 8"):
        next_ids(np.zeros((1, 9), np.int64))


def test_a_class_is_set_up_once_for_direct_calls() -> None:
    n_set_up = []

    @cotenant.model(name="table", example={"i": np.zeros(1, np.int64)})
    class Table:
        def setup(self) -> None:
            n_set_up.append(1)
            self.rows = np.arange(10) ** 2

        def predict(self, i: np.ndarray) -> np.ndarray:
            return self.rows[i]

    assert Table(np.array([2, 3])).tolist() == [4, 9]
    assert Table(4) == 16
    assert len(n_set_up) == 1


def test_a_generator_gives_what_it_returns() -> None:
    @cotenant.model(example=ROW)
    def steps(x: np.ndarray) -> Iterator[None]:
        x = x + 1
        yield
        return {"y": x * 2}

    assert steps([0, 1, 2])["y"].tolist() == [2, 4, 6]


def test_several_inputs_share_their_rows_and_axes() -> None:
    @cotenant.model(inputs={"a": ("float32", ["n"]), "b": ("float32", ["n"])})
    def add(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return a + b

    two = np.ones((2, 5), np.float32)
    assert add(two, two).sum() == 20
    with pytest.raises(ValueError, match=r"unlike numbers of rows: \[1, 2\]"):
        add(two, two[:1])
    with pytest.raises(ValueError, match="axis 'n' is 4 in input 'b', but 5 before"):
        add(two, two[:, :4])


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"job_class": "protected"}, "'protected' needs slo_ms"),
        ({"job_class": "first", "slo_ms": 5}, "expected one of protected, standard, best_effort"),
        ({"name": "a/b"}, "its name may hold letters"),
        ({}, "nothing is known of its input 'x'"),
    ],
)
def test_a_declaration_that_says_too_little_is_refused(said: dict[str, Any], message: str) -> None:
    def target(x: np.ndarray) -> np.ndarray:
        return x

    with pytest.raises(ValueError, match=message):
        cotenant.model(**said)(target)


def test_the_hash_is_that_of_the_file_and_the_declaration() -> None:
    def target(x: np.ndarray) -> np.ndarray:
        return x

    one, two, three = (
        cotenant.model(name="m", example=example)(target) for example in (ROW, ROW, ROW.astype(np.float64))
    )
    assert one.hash == two.hash != three.hash
