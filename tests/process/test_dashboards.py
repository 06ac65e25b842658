"""The dashboard and the alert rules ask for metrics that a running server exports, by labels that it has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from server_process import Process

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
DASHBOARD = DEPLOY / "grafana" / "cotenant.json"
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
ECHO = '[[model]]\nname = "echo"\nsource = "zoo:echo"\nslo_ms = 1000\nmax_batch = 4\n'
CONFIG = f"[server]\ntriton_metrics = true\n{ECHO}"
ONES = [0.5] * 16
WORDS = {
    "by",
    "without",
    "on",
    "ignoring",
    "group_left",
    "group_right",
    "and",
    "or",
    "unless",
    "bool",
    "offset",
}
OF_PROMETHEUS = {"instance", "job", "le"}
"""Labels that Prometheus adds, and the one of buckets."""

Expressions = list[tuple[str, str]]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Labels of every sample that a server exports after a few requests, by name."""
    return labels_of(live(tmp_path_factory.mktemp("text"), "text/plain"))


def live(folder: Path, accept: str) -> str:
    """The metrics page of a server that has answered, refused, and answered late."""
    config = folder / "server.toml"
    config.write_text(CONFIG)
    process = Process(config, store=folder / "store")
    try:
        server = process.ready()
        body = {"inputs": [{"name": "input", "shape": [1, 16], "datatype": "FP32", "data": ONES}]}
        assert server.ask("/v2/models/echo/infer", body)[0] == 200
        assert server.ask("/v2/models/echo/infer", body, {"x-slo-ms": "0.001"})[0] == 429
        status, text = server.ask("/metrics", headers={"accept": accept})
        assert status == 200
        assert isinstance(text, str)
        return text
    finally:
        process.child.kill()
        process.ended()


def labels_of(text: str) -> dict[str, set[str]]:
    """Labels by the names of samples, as Prometheus takes them."""
    found: dict[str, set[str]] = {}
    for name, labels in re.findall(r"^(\w+)(\{.*\})? \S+$", text, re.MULTILINE):
        found.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    return found


def of_dashboard() -> Expressions:
    dashboard = json.loads(DASHBOARD.read_text())
    found = [
        (panel["title"], target["expr"])
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    ]
    found += [(one["name"], one["expr"]) for one in dashboard["annotations"]["list"]]
    return found


def of_alerts() -> Expressions:
    yaml = pytest.importorskip("yaml", reason="PyYAML, of requirements/dev.txt, is not installed")
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return [(rule["alert"], rule["expr"]) for group in groups for rule in group["rules"]]


def selectors(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Every metric that an expression asks for, with the labels that it matches by."""
    matchers: list[str] = []

    def kept(match: re.Match[str]) -> str:
        matchers.append(match[0])
        return f"{{{len(matchers) - 1}}}"

    text = re.sub(r"\{[^}]*\}", kept, expression)
    text = re.sub(r"\[[^\]]*\]", "", text)
    text = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", text)
    for match in re.finditer(r"\b([a-zA-Z_:][a-zA-Z0-9_:]*)\b\s*(\(|\{(\d+)\})?", text):
        if match[1] in WORDS or match[2] == "(":
            continue
        inside = matchers[int(match[3])] if match[3] else ""
        yield match[1], set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", inside))


def grouped(expression: str) -> set[str]:
    """Labels that it groups or joins by."""
    lists = re.findall(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)", expression)
    return {label.strip() for found in lists for label in found.split(",")}


def wrong(expressions: Expressions, page: dict[str, set[str]]) -> list[str]:
    problems: list[str] = []
    for title, expression in expressions:
        if expression.count("(") != expression.count(")"):
            problems.append(f"{title}: parentheses")
        asked = list(selectors(expression))
        if not asked:
            problems.append(f"{title}: asks for nothing")
        known: set[str] = set(OF_PROMETHEUS)
        for name, labels in asked:
            if name not in page:
                problems.append(f"{title}: {name} is not exported")
                continue
            known |= page[name]
            problems += [f"{title}: {name} has no {label}" for label in labels - page[name] - OF_PROMETHEUS]
        problems += [f"{title}: nothing has {label}" for label in grouped(expression) - known]
    return problems


def test_every_panel_asks_for_what_is_exported(page: dict[str, set[str]]) -> None:
    assert len(of_dashboard()) > 30
    assert wrong(of_dashboard(), page) == []


def test_every_alert_asks_for_what_is_exported(page: dict[str, set[str]]) -> None:
    names = {name for name, _ in of_alerts()}
    assert {
        "CotenantAttainmentBurnsFast",
        "CotenantCoverageOff",
        "CotenantCrashLoop",
        "CotenantRefuses",
    } <= names
    assert wrong(of_alerts(), page) == []


def test_variables_of_the_dashboard_come_from_what_is_exported(page: dict[str, set[str]]) -> None:
    variables = json.loads(DASHBOARD.read_text())["templating"]["list"]
    queries = [one["query"]["query"] for one in variables if one["type"] == "query"]
    for query in queries:
        match = re.fullmatch(r"label_values\((\w+), (\w+)\)", query)
        assert match is not None
        assert match[2] in page[match[1]] | OF_PROMETHEUS


def test_the_check_itself_finds_what_is_wrong(page: dict[str, set[str]]) -> None:
    bad = [("a", "sum by (model) (rate(cotenant_nothing_total[5m]))"), ("b", 'cotenant_lanes{model="m"}')]
    assert wrong(bad, page) == [
        "a: cotenant_nothing_total is not exported",
        "a: nothing has model",
        "b: cotenant_lanes has no model",
    ]


def test_triton_s_names_are_there_when_they_are_asked_for(page: dict[str, set[str]]) -> None:
    for name in (
        "nv_inference_request_success",
        "nv_inference_count",
        "nv_inference_exec_count",
        "nv_inference_pending_request_count",
        "nv_inference_request_duration_us",
        "nv_inference_queue_duration_us",
        "nv_inference_compute_input_duration_us",
        "nv_inference_compute_infer_duration_us",
        "nv_inference_compute_output_duration_us",
    ):
        assert page[name] == {"model", "version"}
    assert page["nv_inference_request_failure"] == {"model", "version", "reason"}


def test_openmetrics_pages_hold_exemplars_with_the_ids_of_requests(tmp_path: Path) -> None:
    text = live(tmp_path, "application/openmetrics-text; version=1.0.0")
    families = {family.name: family for family in parse_openmetrics(text)}
    latency = families["cotenant_request_latency_seconds"]
    (example,) = [sample.exemplar for sample in latency.samples if sample.exemplar]
    assert re.fullmatch(r"[0-9a-f]+(-[0-9a-f]+){2}", example.labels["request_id"])
    assert "nv_inference_count" in families
