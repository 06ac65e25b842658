"""A model that is a Python function or class: what it takes, and how it is called.

The callable takes numpy arrays by the names of its parameters, their first axis being rows unless it was
declared otherwise, and gives a dict of arrays, or one array, which is then called `output`. What it takes is
declared, or read off an example. A generator function is a model in segments: it may be stopped wherever it
yields, and gives what it returns.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from cotenant.domain import TensorSpec
from cotenant.execute.batch import Array
from cotenant.execute.memory import resident_bytes
from cotenant.execute.model import NAME, NUMPY, ModelSettings

LONE_OUTPUT = "output"
"""Name of the output of a callable that gives an array instead of a dict."""
Shape = Sequence[int | str | None]
Declared = Mapping[str, tuple[Any, Shape]]
"""Element type (anything numpy takes) and shape of each tensor, the axis of rows left out. A size that varies
is the name of its axis, or None."""

V2_NAMES = {np.dtype(found): name for name, found in NUMPY.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """What is said of a callable where it is defined."""

    settings: ModelSettings
    """Name, SLO, class, most rows, buckets."""
    inputs: Declared | None = None
    """What it takes; None: as in the example."""
    outputs: Declared | None = None
    """What it gives; None: to be found out."""
    example: Mapping[str, Any] | Any = None
    """Valid inputs by name (or the only one), for inferring types, warming and profiling; rows first if it is
    batched."""
    batched: bool = True
    """Whether the first axis of everything is rows."""


class PythonModel:
    """A callable and its declaration. Raises ValueError, naming the model and what to do, when the two do not
    fit or the declaration says too little."""

    def __init__(self, target: Callable[..., Any] | type, declaration: Declaration) -> None:
        self.name = declaration.settings.name
        self.declaration = declaration
        self.target = target
        self._spare: Callable[..., Any] | None = None
        self.instance_bytes = 0
        """By how much the process grew when an instance was last made to look at the model."""
        self._sparing = threading.Lock()
        self._checked(NAME.fullmatch(self.name), "its name may hold letters, digits, '.', '_' and '-' only")
        called = _called(target)
        self._checked(called is not None, "a class needs __call__ or predict")
        self.parameters = _parameters(called, bound=inspect.isclass(target))
        self._checked(self.parameters, "it takes no arrays: give it parameters with the names of its inputs")
        self.in_segments = inspect.isgeneratorfunction(called)
        self.examples = self._examples(declaration.example)
        self._check_names()
        self.inputs = tuple(self._input(name) for name in self.parameters)
        functools.update_wrapper(cast(Any, self), target, updated=())

    def _checked(self, good: object, message: str) -> None:
        if not good:
            raise ValueError(f"model {self.name!r}: {message}")

    def _examples(self, said: Any) -> dict[str, Array]:
        if said is None or isinstance(said, Mapping):
            return {str(name): np.asarray(value) for name, value in (said or {}).items()}
        message = f"give its example by name: its inputs are {list(self.parameters)}"
        self._checked(len(self.parameters) == 1, message)
        return {self.parameters[0]: np.asarray(said)}

    def _check_names(self) -> None:
        for what, names in (("inputs", self.declaration.inputs or ()), ("example", self.examples)):
            unknown = [name for name in names if name not in self.parameters]
            message = f"{what} names {unknown}; its parameters are {list(self.parameters)}"
            self._checked(not unknown, message)

    def _input(self, name: str) -> TensorSpec:
        declared = self.declaration.inputs or {}
        if name in declared:
            return self.tensor(name, *declared[name])
        message = f"nothing is known of its input {name!r}: give example={{{name!r}: array}} or inputs"
        self._checked(name in self.examples, message)
        array = self.examples[name]
        self._checked(
            array.ndim or not self.declaration.batched,
            f"the example of {name!r} has no axis of rows; say batched=False if it should have none",
        )
        return self.tensor(name, array.dtype, array.shape[self.declaration.batched :])

    def tensor(self, name: str, dtype: Any, shape: Shape) -> TensorSpec:
        """The tensor, with an axis of rows in front where there is one."""
        found = np.dtype(object) if np.dtype(dtype).kind in "USO" else np.dtype(dtype)
        self._checked(found in V2_NAMES, f"{name!r} has element type {found}, which cannot be served")
        first = self.declaration.batched
        axes: list[str | None] = ["batch"] if first else []
        for index, size in enumerate(shape):
            fixed = isinstance(size, int) and size >= 0
            named = size if isinstance(size, str) else f"{name}:{index + first}"
            axes.append(None if fixed else named)
        sizes = [size if isinstance(size, int) and size >= 0 else -1 for size in shape]
        return TensorSpec(
            name=name,
            datatype=V2_NAMES[found],
            shape=(-1, *sizes) if first else tuple(sizes),
            axes=tuple(axes),
        )

    # --- instances ------------------------------------------------------------------------------------

    @property
    def has_instances(self) -> bool:
        """Whether every lane has an object of its own."""
        return inspect.isclass(self.target)

    def new_instance(self) -> Callable[..., Any]:
        """What a lane calls: the function itself, or a new object of the class, set up. Blocks as long as the
        class's `__init__` and `setup` do, and raises what they raise."""
        if not self.has_instances:
            return self.target
        made = self.target()
        if hasattr(made, "setup"):
            made.setup()
        return _call_of(made)

    def take_instance(self) -> Callable[..., Any]:
        """One that nobody else has; the one that was made to look at the model is used up first."""
        with self._sparing:
            spare, self._spare = self._spare, None
        return spare or self.new_instance()

    def own_instance(self) -> Callable[..., Any]:
        """The one for looking at the model and for direct calls."""
        with self._sparing:
            if self._spare is None:
                before = resident_bytes() or 0
                self._spare = self.new_instance()
                self.instance_bytes = max(0, (resident_bytes() or 0) - before)
            return self._spare

    # --- running ----------------------------------------------------------------------------------------

    def run(
        self, instance: Callable[..., Any], arrays: Sequence[Array], outputs: Sequence[TensorSpec] | None
    ) -> tuple[dict[str, Array], int]:
        """Call it, to the end if it is in segments; outputs by name (checked against `outputs`, if given),
        and how many segments there were."""
        found, n_segments = instance(*arrays), 1
        if self.in_segments:
            found, n_segments = _drained(found)
        named = self.named(found)
        rows = arrays[0].shape[0] if self.declaration.batched else 1
        return named if outputs is None else self.checked(named, outputs, rows), n_segments

    def named(self, found: Any) -> dict[str, Array]:
        """What it gave, by name. Raises TypeError."""
        if isinstance(found, Mapping):
            return {str(name): _array(value) for name, value in found.items()}
        if found is None or isinstance(found, tuple):
            raise TypeError(
                f"model {self.name!r} gives {type(found).__name__}; expected a dict of arrays, or one array"
            )
        return {LONE_OUTPUT: _array(found)}

    def checked(
        self, named: Mapping[str, Array], outputs: Sequence[TensorSpec], rows: int
    ) -> dict[str, Array]:
        """The outputs in their order and of their types. Raises ValueError where they are not as before."""
        result: dict[str, Array] = {}
        for spec in outputs:
            array = named.get(spec.name)
            if array is None:
                raise ValueError(f"output {spec.name!r} is missing; there are {sorted(named)}")
            fits = len(array.shape) == len(spec.shape) and all(
                wanted in (-1, size) for wanted, size in zip(spec.shape, array.shape, strict=True)
            )
            if not fits or (self.declaration.batched and array.shape[0] != rows):
                raise ValueError(
                    f"output {spec.name!r} has shape {list(array.shape)} for {rows} rows; "
                    f"expected {list(spec.shape)}"
                )
            dtype = np.dtype(NUMPY[spec.datatype])
            if array.dtype != dtype and not np.can_cast(array.dtype, dtype, "same_kind"):
                raise ValueError(f"output {spec.name!r} is {array.dtype}; expected {dtype}")
            result[spec.name] = array.astype(dtype, copy=False)
        return result

    # --- identity -----------------------------------------------------------------------------------------

    @property
    def hash(self) -> str:
        """Of the file that defines it as that is now, its name in there, and its declaration: a stored
        profile belongs to it. Other files and weights that it reads are its own affair."""
        file = self.file
        try:
            text = file.read_bytes() if file is not None else _code(self.target)
        except OSError:
            text = _code(self.target)
        said = f"{getattr(self.target, '__qualname__', '')} {self.inputs} {self.declaration.outputs}"
        return hashlib.sha256(text + b"\0" + said.encode()).hexdigest()

    @property
    def file(self) -> Path | None:
        """Where it is defined; None for what was typed into an interpreter."""
        try:
            found = inspect.getsourcefile(self.target)
        except TypeError:
            return None
        return Path(found) if found is not None and Path(found).is_file() else None


def _called(target: Callable[..., Any] | type) -> Callable[..., Any] | None:
    """The function that is called: of a class, `__call__` or else `predict`."""
    if not inspect.isclass(target):
        return target
    if any("__call__" in vars(base) for base in target.__mro__):
        found: Callable[..., Any] = target.__call__
        return found
    return getattr(target, "predict", None)


def _call_of(made: Any) -> Callable[..., Any]:
    found: Callable[..., Any] = made if callable(made) else made.predict
    return found


def _parameters(called: Callable[..., Any] | None, *, bound: bool) -> tuple[str, ...]:
    assert called is not None
    found = list(inspect.signature(called).parameters.values())[bound:]
    return tuple(p.name for p in found if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))


def _drained(steps: Iterator[Any]) -> tuple[Any, int]:
    """What a generator returns, and how many segments it has."""
    n = 1
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value, n
        n += 1


def _array(value: Any) -> Array:
    array = np.asarray(value)
    return array.astype(object) if array.dtype.kind in "US" else array


def _code(target: Any) -> bytes:
    """What is known of a callable without its source."""
    code = getattr(target, "__code__", None)
    return code.co_code + repr(code.co_consts).encode() if code is not None else repr(target).encode()
