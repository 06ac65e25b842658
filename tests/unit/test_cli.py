"""What the command says is what was meant: nothing in a message is taken for markup."""

from __future__ import annotations

import pytest

from cotenant import cli


def test_brackets_and_colons_in_a_message_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    message = "/tmp/x.toml: [[model]] 'm' source: own:boom: [red]no[/] such [file]"
    cli._fail(message)
    assert capsys.readouterr().err == f"error: {message}\n"
