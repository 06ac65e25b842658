"""An explanation says where a request's time went, what was predicted and who ran beside."""

from __future__ import annotations

import pytest
from story import BEST_EFFORT, MS, PROTECTED, asked, played, spec

from cotenant.domain import NS_PER_S, OutcomeKind
from cotenant.execute.fake import FakeScript
from cotenant.telemetry.explanation import FORGOTTEN, UNKNOWN, Behind, Explanation, sentence
from cotenant.telemetry.joining import to_json

RESNET = spec("resnet18", 60.0)
BERT = spec("bert_mini", 500.0)


def test_a_request_that_ran_alone_took_its_solo_time() -> None:
    request = asked(RESNET, 3.0)
    journal, _ = played("exclusive_edf", {RESNET: 10.0}, [request])
    told = journal.explain(request.id)
    assert (told.outcome, told.queue_ms, told.run_ms, told.slowdown) == ("ok", 0.0, 10.0, 1.0)
    assert told.corunners == []
    assert told.decision is not None
    assert told.decision.why == "earliest deadline"
    assert told.arrived == "2023-11-14T22:13:20.003+00:00"
    assert told.sentence == (
        "answered after 10 ms, 50 ms before its deadline: ran 10 ms, 1.0 x its solo time, alone"
    )


def test_a_late_request_names_what_it_waited_behind() -> None:
    before = [asked(BERT, 0.0, number) for number in range(2)]
    request = asked(RESNET, 1.0, 9)
    journal, _ = played("fcfs", {RESNET: 10.0, BERT: 30.0}, [*before, request])
    told = journal.explain(request.id)
    assert told.outcome == "late"
    assert told.queue_ms == told.lanes_busy_ms == 59.0
    assert [(one.model, one.runs, one.rows, one.ms) for one in told.behind] == [("bert_mini", 2, 2, 59.0)]
    assert told.sentence.startswith("late by 9.0 ms: waited 59 ms behind 2 batches of bert_mini; ran 10 ms")


def test_who_ran_beside_is_told_with_the_share_of_the_run() -> None:
    def script(profiles):
        return FakeScript(
            durations=lambda dispatch: 28 * MS if dispatch.variant.model == "bert_mini" else 7 * MS
        )

    long, short = asked(BERT, 0.0), asked(RESNET, 7.0, 1)
    journal, _ = played("k_edf", {RESNET: 5.0, BERT: 20.0}, [long, short], n_lanes=2, script=script)
    told = journal.explain(long.id)
    assert told.slowdown == 1.4
    assert [(one.model, one.lane, one.ms, one.share) for one in told.corunners] == [
        ("resnet18", 1, 7.0, 0.25)
    ]
    assert told.sentence.endswith("ran 28 ms, 1.4 x its solo time beside resnet18 (25% of the run)")
    beside = journal.explain(short.id)
    assert beside.corunners[0].share == 1.0
    assert beside.decision is not None
    assert beside.decision.beside == ["bert_mini[1]"]


def test_what_was_predicted_at_dispatch_stands_beside_what_was() -> None:
    request = asked(RESNET, 0.0)
    journal, outcomes = played("exclusive_edf", {RESNET: 10.0}, [request])
    told = journal.explain(request.id)
    assert list(told.predicted) == ["0.5", "0.9", "0.95", "0.99", "slo"]
    assert list(told.predicted.values()) == sorted(told.predicted.values())
    assert told.predicted["0.5"] == told.predicted_ms
    predicted_at = outcomes[request.id].predicted_at
    assert predicted_at is not None
    assert told.predicted_ms == pytest.approx(predicted_at / MS)
    assert told.within in told.predicted


def test_what_else_could_have_run_is_told() -> None:
    first = asked(BERT, 0.0)
    urgent, other = asked(RESNET, 1.0, 1), asked(BERT, 1.0, 2)
    journal, _ = played("exclusive_edf", {RESNET: 10.0, BERT: 5.0}, [first, other, urgent])
    decision = journal.explain(urgent.id).decision
    assert decision is not None
    assert [(one.model, one.due_ms) for one in decision.alternatives] == [("bert_mini", 500.0)]
    assert decision.alternatives[0].why == "its deadline is later"


def test_a_refusal_says_when_it_would_have_ended() -> None:
    tight = spec("tight", 5.0)
    request = asked(tight, 0.0)
    journal, _ = played("exclusive_edf", {tight: 20.0}, [request])
    told = journal.explain(request.id)
    assert told.outcome == "rejected"
    assert told.predicted_ms == 20.0
    assert told.sentence == ("refused after 0.0 ms, it would have ended after 20 ms, 15 ms past its deadline")


def test_a_refusal_names_what_was_in_flight() -> None:
    tight = spec("tight", 25.0)
    before, probe, request = asked(tight, 0.0), asked(tight, 1.0, 1), asked(tight, 2.0, 2)
    journal, _ = played("deferred_edf", {tight: 20.0}, [before, probe, request])
    told = journal.explain(request.id)
    assert told.outcome == "rejected"
    assert told.in_flight == ["tight[1]"]
    assert told.sentence.endswith("(in flight: tight[1])")


def test_a_run_beside_thousands_tells_of_the_longest() -> None:
    long, short = spec("long", None, job_class=BEST_EFFORT), spec("short", 100.0)
    requests = [asked(long, 0.0), *(asked(short, 1.0 + n * 2.0, 1 + n) for n in range(900))]
    journal, _ = played("k_edf", {long: 2000.0, short: 1.0}, requests, n_lanes=2)
    told = journal.explain(requests[0].id)
    assert told.n_corunners == 900
    assert len(told.corunners) == 64


def test_a_failure_keeps_its_details_from_clients() -> None:
    def script(profiles):
        return FakeScript(durations=lambda _: 10 * MS, raises=lambda _: "weights at /secret/place are gone")

    request = asked(RESNET, 0.0)
    journal, _ = played("exclusive_edf", {RESNET: 10.0}, [request], script=script)
    told = journal.explain(request.id)
    assert told.outcome == "failed"
    assert "/secret/place" in told.reason
    assert told.variant == "resnet18[1]"
    public = to_json(told)
    assert public["reason"] == "execution failed"
    assert "/secret/place" not in str(public)


def test_a_run_that_was_stopped_is_told_part_by_part() -> None:
    slow = spec("batch_job", None, segments=10, job_class=BEST_EFFORT)
    urgent = spec("urgent", 30.0, job_class=PROTECTED)
    long, short = asked(slow, 0.0), asked(urgent, 12.0, 1)
    journal, _ = played("ours-no-overlap", {slow: 100.0, urgent: 10.0}, [long, short])
    told = journal.explain(long.id)
    assert [part.first_segment for part in told.parts] == [0, 2]
    assert told.parts[0].end_segment == 2
    assert told.parts[1].end_segment == 10
    assert (told.run_ms, told.suspended_ms, told.slowdown) == (100.0, 10.0, 1.0)
    assert "was suspended for 10 ms" in told.sentence


def test_the_parts_of_a_request_add_up_to_its_whole() -> None:
    requests = [asked(RESNET, n * 7.0, n) for n in range(40)]
    requests += [asked(BERT, n * 11.0, 100 + n) for n in range(20)]
    for policy in ("fcfs", "deferred_edf", "k_edf", "ours"):
        journal, outcomes = played(policy, {RESNET: 10.0, BERT: 15.0}, requests, n_lanes=2)
        for request_id, outcome in outcomes.items():
            told = journal.explain(request_id)
            spans = [told.read_ms, told.queue_ms, told.staged_ms, told.run_ms, told.suspended_ms]
            whole = (outcome.ended_at - outcome.request.arrived_at) / MS
            assert sum(span or 0.0 for span in spans) == pytest.approx(whole, abs=0.01)
            waited = [told.batch_wait_ms, told.apart_ms, told.lanes_busy_ms]
            assert sum(span or 0.0 for span in waited) == pytest.approx(told.queue_ms, abs=0.01)


def test_today_s_keys_keep_their_names_and_meaning() -> None:
    request = asked(RESNET, 0.0)
    journal, _ = played("exclusive_edf", {RESNET: 10.0}, [request])
    told = to_json(journal.explain(request.id))
    old = {
        "id": request.id,
        "model": "resnet18",
        "class": "standard",
        "outcome": "ok",
        "reason": "served",
        "deadline_ms": 60.0,
        "dispatched_ms": 0.0,
        "started_ms": 0.0,
        "ended_ms": 10.0,
        "batch_rows": 1,
    }
    assert {key: told[key] for key in old} == old
    assert told["predicted_ms"] is not None


# --- what is not known ---------------------------------------------------------------------------------


def test_an_id_that_was_never_given_is_unknown() -> None:
    journal, _ = played("exclusive_edf", {RESNET: 10.0}, [asked(RESNET, 0.0)])
    for request_id in ("nonsense", "", "ffffffffff-1", "0-0; drop table", "5f5e100-99"):
        told = journal.explain(request_id)
        assert told.state == UNKNOWN
        assert "x-request-id" in told.sentence


def test_an_id_that_is_too_old_is_said_to_be_so() -> None:
    requests = [asked(RESNET, 1.0 + n * 20.0, n) for n in range(40)]
    journal, _ = played("exclusive_edf", {RESNET: 10.0}, requests, recent=8)
    assert journal.explain(requests[-1].id).outcome == "ok"
    told = journal.explain(requests[3].id)
    assert told.state == FORGOTTEN
    assert "no longer remembered" in told.sentence
    assert "last 8 requests" in told.sentence


# --- slow ones -----------------------------------------------------------------------------------------


def test_slow_requests_are_kept_longer_and_told_to_sinks_at_a_bounded_rate() -> None:
    tight = spec("tight", 5.0)
    told = []
    requests = [asked(tight, n * 1.0, n) for n in range(3000)]
    journal, outcomes = played("exclusive_edf", {tight: 20.0}, requests, recent=8, sinks=[told.append])
    refused = [o for o in outcomes.values() if o.kind is OutcomeKind.REJECTED]
    seconds = (requests[-1].arrived_at - requests[0].arrived_at) / NS_PER_S
    assert len(refused) > 2000
    assert 3 <= len(told) <= 5 + seconds + 1
    assert journal.explain(told[0].id).outcome == "rejected"


# --- sentences --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (
            Explanation(id="1", outcome="ok", ended_ms=45.0, answer_ms=10.0, deadline_ms=50.0, run_ms=45.0),
            "answered after 55 ms, 5.0 ms past its deadline although its run had ended in time: "
            "ran 45 ms, alone; took 10 ms more to answer",
        ),
        (
            Explanation(id="1", outcome="ok", ended_ms=1500.0, run_ms=20.0, read_ms=1480.0),
            "answered after 1.5 s: took 1.5 s to arrive in full; ran 20 ms, alone",
        ),
        (
            Explanation(
                id="1",
                outcome="expired",
                reason="deadline passed: while it waited",
                ended_ms=9.0,
                queue_ms=9.0,
                lanes_busy_ms=2.0,
                apart_ms=7.0,
                behind=[
                    Behind(model=name, runs=n, rows=n, ms=1.0) for name, n in (("a", 1), ("b", 2), ("c", 3))
                ],
            ),
            "given up after 9.0 ms, deadline passed, while it waited: "
            "waited 9.0 ms behind 1 batch of a, 2 batches of b and 3 batches of others "
            "although a lane was free",
        ),
        (
            Explanation(
                id="1",
                outcome="ok",
                ended_ms=30.0,
                run_ms=10.0,
                queue_ms=20.0,
                batch_wait_ms=20.0,
                batch_requests=4,
            ),
            "answered after 30 ms: waited 20 ms for a larger batch; ran 10 ms, alone",
        ),
        (
            Explanation(id="1", outcome="cancelled", reason="cancelled by the client", ended_ms=3.0),
            "ended after 3.0 ms, cancelled by the client",
        ),
    ],
)
def test_the_sentence_names_what_took_most_first(told: Explanation, expected: str) -> None:
    assert sentence(told) == expected
