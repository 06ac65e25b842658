"""Shipped fakes and contract checks, used by our own tests and open to anyone's."""

from cotenant.testing.chaos import Chaos, TableProfiles
from cotenant.testing.echo_link import ECHO, EchoLink
from cotenant.workload.no_load import NoLoad

__all__ = ["ECHO", "Chaos", "EchoLink", "NoLoad", "TableProfiles"]
