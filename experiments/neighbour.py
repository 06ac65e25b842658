"""A process that takes part of every core of the machine, and knows nothing of any server.

On each core it computes for a share of the time and sleeps for the rest, in turns of `--period-ms`. Used by
`closed_loop.py`; ends when its time is over or when it is told to.

    python experiments/neighbour.py --share 0.2 [--after 20] [--seconds 60]
"""

from __future__ import annotations

import argparse
import os
import signal
import time


def burn(core: int, share: float, period_s: float, until: float) -> None:
    """Compute for `share` of every period on one core, by the time that this process really got: another
    that keeps it from the core does not make it smaller."""
    os.sched_setaffinity(0, {core})
    x = 1
    while (began := time.monotonic()) < until:
        used_until = time.thread_time() + share * period_s
        while time.thread_time() < used_until:
            for _ in range(1000):
                x = (x * 1103515245 + 12345) & 0x7FFFFFFF
        time.sleep(max(0.0, began + period_s - time.monotonic()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--share", type=float, required=True, help="of each core, 0..1")
    parser.add_argument("--period-ms", type=float, default=20.0)
    parser.add_argument("--after", type=float, default=0.0, help="seconds to wait first")
    parser.add_argument("--seconds", type=float, default=3600.0)
    options = parser.parse_args()
    begin_at = time.monotonic() + options.after
    children = []
    for core in sorted(os.sched_getaffinity(0)):
        child = os.fork()
        if child == 0:
            time.sleep(max(0.0, begin_at - time.monotonic()))
            burn(core, options.share, options.period_ms / 1000, begin_at + options.seconds)
            os._exit(0)
        children.append(child)

    def stop(number: int, frame: object) -> None:
        for child in children:
            os.kill(child, signal.SIGKILL)

    signal.signal(signal.SIGTERM, stop)
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
