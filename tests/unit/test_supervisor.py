"""How long a supervisor waits before it starts a child anew."""

from __future__ import annotations

from cotenant.supervisor import Backoff


def test_waits_double_up_to_the_most() -> None:
    backoff = Backoff(first_s=0.1, most_s=30.0, healthy_s=10.0)
    waits = [backoff.after(0.0) for _ in range(12)]
    assert waits[:4] == [0.1, 0.2, 0.4, 0.8]
    assert waits[-1] == 30.0
    assert waits == sorted(waits)
    assert backoff.n_in_row == 12


def test_after_healthy_work_the_next_start_comes_soon() -> None:
    backoff = Backoff(first_s=0.1, most_s=30.0, healthy_s=10.0)
    for _ in range(6):
        backoff.after(9.9)
    assert backoff.after(10.0) == 0.1
    assert backoff.n_in_row == 1
    assert backoff.after(0.0) == 0.2


def test_endless_failure_never_overflows() -> None:
    backoff = Backoff()
    assert [backoff.after(0.0) for _ in range(3000)][-1] == backoff.most_s
