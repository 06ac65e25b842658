"""What every test session does first."""

from __future__ import annotations

from pathlib import Path

from cotenant import predict


def pytest_configure() -> None:
    """Numba keeps a compiled function until its own module changes, and does not see that one which it calls
    has: drop what is older than any of them."""
    folder = Path(predict.__file__).parent
    newest = max(path.stat().st_mtime for path in folder.glob("*.py"))
    for index in folder.glob("__pycache__/*.nbi"):
        if index.stat().st_mtime < newest:
            index.unlink()
