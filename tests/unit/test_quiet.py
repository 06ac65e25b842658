"""A measurement on a busy machine says so."""

from __future__ import annotations

from cotenant.profile.quiet import QuietWatch, disturbance
from cotenant.profile.records import Quiet

S = 10**9


def test_others_and_the_hypervisor_are_told_from_what_we_used(tmp_path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  1000 0 100 5000 0 0 0 10 0 0\ncpu0 0\n")
    now = [0]
    watch = QuietWatch(lambda: now[0], stat)
    stat.write_text("cpu  3000 0 1100 9000 0 0 0 210 0 0\ncpu0 0\n")
    now[0] = 10 * S
    quiet = watch.report()
    assert 2.9 < quiet.others <= 3.0  # 30 s of 10, less the little that this test used
    assert quiet.stolen == 0.2
    assert "other processes used" in (disturbance(quiet) or "")


def test_fixed_work_that_varies_is_a_disturbance(tmp_path) -> None:
    watch = QuietWatch(lambda: S, tmp_path / "no such file")
    for span in (100.0, 101.0, 99.0, 160.0):
        watch.spun(span)
    quiet = watch.report()
    assert quiet.others == quiet.stolen == 0.0
    assert "varied by 4" in (disturbance(quiet) or "")


def test_a_quiet_machine_has_no_disturbance() -> None:
    assert disturbance(Quiet(spread=0.02, others=0.01, stolen=0.0)) is None
