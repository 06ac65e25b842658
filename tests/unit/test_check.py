"""`cotenant check`: every problem of a configuration and of what it names, with its place."""

from __future__ import annotations

import json
import os
import socket
import sys
import textwrap
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cotenant.catalogue import places
from cotenant.checking import Address, check
from cotenant.cli import app
from cotenant.config_problems import line_of, read_all

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
from scaled_models import write_model

GOOD = '[[model]]\nname = "echo"\nsource = "zoo:echo"\nslo_ms = 50\n'


def written(folder: Path, text: str) -> Path:
    path = folder / "server.toml"
    path.write_text(textwrap.dedent(text))
    return path


def problems(folder: Path, text: str, **address: object) -> list[tuple[int | None, str]]:
    """(line, message) of each problem."""
    path = written(folder, text)
    _, found = check(path, places(folder / "store"), Address(**address))
    return [(problem.line, problem.message) for problem in found]


def test_a_good_file_has_none(tmp_path: Path) -> None:
    assert problems(tmp_path, GOOD) == []


def test_every_problem_is_found_and_placed(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        """\
        colour = "red"
        [device]
        kind = "cpu"
        lanes = 99
        [server]
        drain = 5
        max_body_mib = "much"
        [[model]]
        name = "a"
        source = "absent.onnx"
        slo_mss = 5
        [[model]]
        slo_ms = "soon"
        class = "protected"
        name = "b"
        source = "zoo:nothing"
        max_batch = 0
        [[model]]
        source = "zoo:echo"
        [[model]]
        name = "c"
        source = "own:thing"
        [[model]]
        name = "a"
        source = "zoo:echo"
        """,
    )
    wanted = {
        1: "unknown key 'colour'",
        4: "[device] lanes must be from 1 to 64",
        6: "unknown key 'drain'; did you mean 'drain_s'",
        7: "[server] max_body_mib must be a whole number",
        10: "there is no file",
        11: "unknown key 'slo_mss'; did you mean 'slo_ms'",
        13: "slo_ms must be a finite number, not 'soon'",
        16: "there is no 'zoo:nothing'; known: ",
        17: "max_batch must be from 1 to 1024",
        18: "[[model]] 3 needs the key 'name'",
        22: "can carry code: set allow_code = true",
        23: "is named twice",
    }
    assert {line for line, _ in found} == set(wanted)
    assert len(found) == len(wanted)
    for line, message in found:
        assert wanted[line or 0] in message


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("[[model]]\nname = \n", 2, "not valid TOML"),
        ("", None, "needs at least one model"),
        (GOOD + "buckets = { seq = [2, 1] }\n", 5, "buckets.seq must be ascending"),
        (GOOD + "[[phase]]\nat_s = -1\n", 6, "at_s must be a number of seconds"),
        (GOOD + "[[phase]]\nat_s = 1\n[phase.model.echo]\nrate = 2\n", 8, "unknown key 'rate'"),
        ('[device]\nkind = "twin"\n' + GOOD, 2, "is not available for ONNX models"),
    ],
)
def test_other_problems_have_places_too(tmp_path: Path, text: str, line: int | None, message: str) -> None:
    ((at, said),) = problems(tmp_path, text)
    assert (at, message in said) == (line, True), said


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    for content in (None, b"\xff\xfe"):
        path = tmp_path / "x.toml"
        if content is not None:
            path.write_bytes(content)
        scenario, (problem,) = read_all(path)
        assert scenario is None
        assert "cannot be read" in problem.message


def test_model_files_are_looked_into(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"\x08\x08garbage")
    ((line, message),) = problems(tmp_path, '[[model]]\nname = "m"\nsource = "broken.onnx"\n')
    assert line == 3
    assert "model file broken.onnx" in message


def test_python_sources_are_run_if_code_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("raise RuntimeError('not today')\n")
    table = '[[model]]\nname = "m"\nsource = "own:thing"\n'
    ((line, message),) = problems(tmp_path, "[server]\nallow_code = true\n" + table)
    assert (line, "RuntimeError: not today" in message) == (5, True)
    ((line, message),) = problems(tmp_path, table)
    assert (line, "can carry code" in message) == (3, True)


def test_a_port_that_is_taken_is_a_problem_if_it_is_asked_for(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ((_, message),) = problems(tmp_path, GOOD, ports=[port, 0])
        assert f"cannot listen on 127.0.0.1:{port}" in message
        assert problems(tmp_path, GOOD) == []


def test_memory_that_is_not_there_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cotenant.checking.available_bytes", lambda: 10)
    ((_, message),) = problems(tmp_path, GOOD.replace("zoo:echo", "zoo:mobilenet"))
    assert "MiB of memory" in message


@pytest.mark.skipif(os.geteuid() == 0, reason="everything can be written to by root")
def test_a_store_that_cannot_be_written_to_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir(mode=0o500)
    ((_, message),) = problems(tmp_path, GOOD)
    assert "cannot be written to" in message


# --- the command ---------------------------------------------------------------------------------------


def test_the_command_says_problems_with_file_and_line_and_ends_with_1(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD + "max_bach = 4\n")
    done = CliRunner().invoke(app, ["check", str(path), "--store", str(tmp_path)])
    assert done.exit_code == 1
    assert f"{path}:5: [[model]] 'echo': unknown key 'max_bach'; did you mean 'max_batch'?" in done.stderr


def test_the_command_prints_json(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    done = CliRunner().invoke(app, ["check", str(path), "--json", "--store", str(tmp_path)])
    assert (done.exit_code, json.loads(done.stdout)) == (0, {"ok": True, "models": ["echo"], "problems": []})
    path.write_text(GOOD + "slo_mss = 4\n")
    done = CliRunner().invoke(app, ["check", str(path), "--json", "--store", str(tmp_path)])
    (problem,) = json.loads(done.stdout)["problems"]
    assert (done.exit_code, problem["line"], problem["where"]) == (1, 5, "[[model]] 'echo' slo_mss")


def test_lines_of_tables_and_keys() -> None:
    text = '# a comment\n[server]\n\n"drain_s" = 1\n[[model]] # one\nname = "x"\n'
    text += '[[model]]\nslo_ms=1\nname = "y"\n'
    for where, line in {
        "[server]": 2, "[server] drain_s": 4, "[server] absent": 2, "[[model]] 'x' slo_ms": 5,
        "[[model]] 'y' slo_ms": 8, "[[model]] 1 name": 6, "[[model]] 3": None, "[load]": None, "": None,
    }.items():  # fmt: skip
        assert line_of(text, where) == line, where


def test_labels_that_do_not_fit_are_found(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("apple\n")
    assert problems(tmp_path, GOOD + 'labels = "names.txt"\n') == []
    assert problems(tmp_path, GOOD + 'labels = {other = "names.txt"}\n') == [
        (5, "[[model]] 'echo' labels: the model has no output 'other'; it has output")
    ]


def test_a_repository_and_its_models_are_looked_at(tmp_path: Path) -> None:
    head = '[device]\nmemory_mib = 1\n[repository]\npath = "models"\n'
    assert problems(tmp_path, head) == [(4, f"[repository] path names no folder: {tmp_path / 'models'}")]
    assert problems(tmp_path, '[repository]\nmode = "pol"\n') == [
        (1, "[repository] path is needed: the folder of the models"),
        (2, "[repository] mode must be one of none, explicit, poll, not 'pol'; did you mean 'poll'?"),
    ]
    folder = tmp_path / "models"
    for model, version in (("good", "1"), ("broken", "3"), ("odd", "1"), ("empty", "")):
        (folder / model / version).mkdir(parents=True)
    write_model(folder, "good", 1, 2.0, n_weights=1 << 20)
    (folder / "broken" / "3" / "model.onnx").write_bytes(b"no model")
    (folder / "odd" / "config.toml").write_text('versions = "newest"\n')
    found = dict.fromkeys(message for _, message in problems(tmp_path, head))
    assert [line for line, _ in problems(tmp_path, head)] == [2, 4, 4, 4]
    for expected in (
        "[device] memory_mib is 1, but the weights alone take 4 MiB",
        "model 'broken@3': model file model.onnx",
        "versions must be {latest = N}",
        "model 'empty' has none of the versions to serve",
    ):
        assert any(expected in message for message in found), (expected, found)
    explicit = head + 'mode = "explicit"\nload = ["good", "absent"]\n'
    messages = [message for _, message in problems(tmp_path, explicit)]
    assert any("unknown model 'absent'" in message for message in messages), messages
    clash = head + GOOD.replace("echo", "good", 1)
    assert (5, "[[model]] 'good' is also a model of the repository; rename one") in [
        (5, message) for _, message in problems(tmp_path, clash)
    ]
