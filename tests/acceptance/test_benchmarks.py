"""The benchmark runs: with what is installed here, for a moment. What it finds is not judged."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from tests.support.processes import Start
from tests.support.readme import ROOT

RPC = ROOT / "benchmarks" / "rpc.py"
TRANSFER = ROOT / "benchmarks" / "transfer.py"
EVENTS = ROOT / "benchmarks" / "events.py"
SECURITY = ROOT / "benchmarks" / "security.py"
SCALE = ROOT / "benchmarks" / "scale.py"
DOCUMENTS = {
    RPC: "benchmarks.md",
    TRANSFER: "benchmarks-transfer.md",
    EVENTS: "benchmarks-events.md",
    SECURITY: "benchmarks-security.md",
}
OURS = ["raw", "labmesh-blocking", "labmesh-async"]
LIMIT_S = 40.0


def test_it_measures_the_limit_and_both_clients_of_labmesh(start: Start, tmp_path: Path) -> None:
    written = tmp_path / "figures.json"
    arguments = ["--quick", "--rounds", "1", "--only", ",".join(OURS), "--json", written]
    process = start([RPC, *arguments], cwd=tmp_path)

    assert process.wait_end(LIMIT_S) == 0, process.tail()
    found = json.loads(written.read_text(encoding="utf-8"))
    assert found["left_out"] == {}
    for candidate in OURS:
        medians = found["medians"][candidate]
        assert list(medians) == ["latency", "in_flight", "array_1mb", "array_8mb"]
        assert all(figure > 0 for each in medians.values() for figure in each.values())
    judged = [each["target"] for each in found["targets"] if each["met"] is not None]
    assert judged == [
        "round trip, labmesh-blocking: at most 2 x raw",
        "round trip, labmesh-async: at most 3 x raw",
        "64 in flight, labmesh-async: at least 0.4 of raw",
    ]
    assert "As ratios to raw" in process.output


@pytest.mark.parametrize(
    ("where", "fails", "says"),
    [
        ("a file", "the virtual environment", "Not a directory"),
        # An environment takes some seconds to be made.
        pytest.param("a folder", "pip install", "labmesh==0.0.0.dev0", marks=pytest.mark.soak),
    ],
)
def test_a_peer_that_does_not_install_is_reported_and_left_out(
    start: Start, tmp_path: Path, where: str, fails: str, says: str
) -> None:
    written = tmp_path / "figures.json"
    if where == "a file":
        (tmp_path / "environments").write_text("no folder")
    arguments = ["--quick", "--rounds", "1", "--only", "raw,labmesh-dev0", "--measure", "latency"]
    process = start(
        [RPC, *arguments, "--env", tmp_path / "environments", "--json", written],
        cwd=tmp_path,
        environ={"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)},
    )

    assert process.wait_end(LIMIT_S) == 0, process.tail()
    found = json.loads(written.read_text(encoding="utf-8"))
    assert says in found["left_out"]["labmesh-dev0"]
    assert list(found["medians"]) == ["raw"]
    assert f"labmesh-dev0: {fails}: " in process.output


@pytest.mark.skipif(not hasattr(os, "sched_yield"), reason="nobody can look all the time")
def test_what_a_round_trip_can_be_at_best_is_measured(start: Start, tmp_path: Path) -> None:
    limits = ROOT / "benchmarks" / "limits.py"
    process = start([limits, "--rounds", "1", "--seconds", "0.01"], cwd=tmp_path)

    assert process.wait_end(LIMIT_S) == 0, process.tail()
    found = re.findall(r"(\S+) +both (\w+) +([\d.]+) µs +([\d.]+)", process.output)
    kinds = ("zmq-tcp", "zmq-ipc", "plain-tcp", "plain-unix")
    assert [row[:2] for row in found] == [(k, w) for k in kinds for w in ("asleep", "looking")]
    assert found[0][3] == "1.00"
    assert all(float(row[2]) > 1 for row in found)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for processes in /proc")
def test_interrupted_it_leaves_no_process_behind(start: Start, tmp_path: Path) -> None:
    only = ["--only", "raw,labmesh-async"]
    process = start([RPC, "--quick", "--rounds", "1000", *only], cwd=tmp_path)
    process.wait_for("round 1 of", LIMIT_S)
    children = _children(process.pid)

    process.interrupt()

    assert process.wait_end(LIMIT_S) == 130, process.tail()
    # raw: server, client; labmesh: broker, relay, client
    assert len(children) == 5
    assert [each for each in children if Path(f"/proc/{each}").exists()] == []


def test_transfers_are_measured_beside_raw_pyzmq_with_the_same_work(
    start: Start, tmp_path: Path
) -> None:
    written = tmp_path / "figures.json"
    arguments = ["--quick", "--only", "raw,labmesh,cp", "--measure", "small", "--json", written]
    process = start([TRANSFER, *arguments], cwd=tmp_path, environ={"TMPDIR": str(tmp_path)})

    assert process.wait_end(LIMIT_S) == 0, process.tail()
    found = json.loads(written.read_text(encoding="utf-8"))
    assert found["left_out"] == {}
    for candidate in ["raw", "labmesh", "cp"]:
        assert all(figure > 0 for figure in found["medians"][candidate]["small"].values())
    judged = [each["target"] for each in found["targets"] if each["met"] is not None]
    assert judged == ["1 kB datasets, labmesh: at least 200 /s"]
    assert list(tmp_path.iterdir()) == [written]


@pytest.mark.parametrize(
    "ours",
    [
        ["labmesh-broker"],
        # The others start the same nodes, and are measured by the same lines.
        pytest.param(
            ["labmesh-broker", "labmesh", "labmesh-broker-password"], marks=pytest.mark.soak
        ),
    ],
    ids=len,
)
def test_events_are_measured_beside_the_c_proxy(
    start: Start, tmp_path: Path, ours: list[str]
) -> None:
    written = tmp_path / "figures.json"
    candidates = ["zmq-proxy", *ours]
    arguments = ["--quick", "--only", ",".join(candidates), "--json", written]
    measured = ["--measure", "rate_1", "--measure", "latency"]
    process = start([EVENTS, *arguments, *measured], cwd=tmp_path)

    assert process.wait_end(LIMIT_S) == 0, process.tail()
    found = json.loads(written.read_text(encoding="utf-8"))
    assert found["left_out"] == {}
    for candidate in candidates:
        medians = found["medians"][candidate]
        assert list(medians) == ["rate_1", "latency"]
        assert medians["rate_1"]["per_s"] >= 100
        # In 0.1 s at 500 a second, or as many as the machine sends: each to 8 subscribers.
        assert 0 < medians["latency"]["count"] <= 400
        assert medians["latency"]["count"] % 8 == 0
        assert 0 < medians["latency"]["p50"] <= medians["latency"]["p99"]
    judged = [each["target"] for each in found["targets"] if each["met"] is not None]
    assert judged == ["1 subscriber, labmesh-broker: at least 0.5 of zmq-proxy"]


@pytest.mark.parametrize(
    "candidates",
    [
        ["labmesh-keys"],
        # The others start the same programs, or those of raw pyzmq that other suites start, and
        # are measured by the same lines.
        pytest.param(
            ["raw", "raw-curve", "labmesh-open", "labmesh-password", "labmesh-keys"],
            marks=pytest.mark.soak,
        ),
    ],
    ids=len,
)
def test_the_cost_of_keys_is_measured_beside_that_of_curve(
    start: Start, tmp_path: Path, candidates: list[str]
) -> None:
    written = tmp_path / "figures.json"
    arguments = ["--quick", "--only", ",".join(candidates), "--json", written]
    measured = ["--measure", "latency", "--measure", "events"]
    process = start(
        [SECURITY, *arguments, *measured], cwd=tmp_path, environ={"TMPDIR": str(tmp_path)}
    )

    assert process.wait_end(LIMIT_S) == 0, process.tail()
    found = json.loads(written.read_text(encoding="utf-8"))
    assert found["left_out"] == {}
    for candidate in candidates:
        medians = found["medians"][candidate]
        assert list(medians) == ["latency", "events"]
        assert medians["latency"]["p99"] >= medians["latency"]["p50"] > 0
        assert medians["events"]["per_s"] >= 100
    judged = [each["target"] for each in found["targets"] if each["met"] is not None]
    assert len(judged) == (4 if "raw" in candidates else 0)
    assert list(tmp_path.iterdir()) == [written], "the keys are gone"


def test_many_relays_are_watched_and_what_is_lost_is_counted(start: Start, tmp_path: Path) -> None:
    written = tmp_path / "figures.json"
    arguments = ["--relays", "4,12", "--seconds", "0.5", "--clients", "2", "--each", "5"]
    process = start([SCALE, *arguments, "--json", written], cwd=tmp_path)

    assert process.wait_end(LIMIT_S) == 0, process.tail()
    rows = json.loads(written.read_text(encoding="utf-8"))["rows"]
    assert [each["relays"] for each in rows] == [4, 12]
    for row in rows:
        counted = {key: row[key] for key in ("lost", "told", "skipped", "disorder", "refused")}
        assert counted == dict.fromkeys(counted, 0)
        assert row["out_per_s"] > row["in_per_s"] > 0
    assert "met  lost: 0, wanted: 0" in process.output


def test_the_page_on_scale_names_every_column_and_only_options_that_exist(
    start: Start, tmp_path: Path
) -> None:
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    usage = start([SCALE, "--help"], cwd=tmp_path)
    assert usage.wait_end(LIMIT_S) == 0
    options = set(re.findall(r"(?<![\w-])--[a-z]+", page)) - {"--only"}
    assert options <= set(re.findall(r"--[a-z]+", usage.output))
    listed = re.findall(r"^\| ([^`|]+?) \| [^|]+ \|$", page, re.M)
    columns = {name for each in listed for name in each.split(", ")}
    source = SCALE.read_text(encoding="utf-8")
    headings = set(re.findall(r'^    \("\w+", "([^"]+)", ', source, re.M))
    assert headings - {"relays"} == columns - {"column", "---"}


@pytest.mark.parametrize("script", DOCUMENTS, ids=lambda path: path.stem)
def test_the_document_names_every_candidate_and_only_options_that_exist(
    start: Start, tmp_path: Path, script: Path
) -> None:
    document = (ROOT / "docs" / DOCUMENTS[script]).read_text(encoding="utf-8")
    listing = start([script, "--list"], cwd=tmp_path)
    usage = start([script, "--help"], cwd=tmp_path)
    assert (listing.wait_end(LIMIT_S), usage.wait_end(LIMIT_S)) == (0, 0)

    names = [line.split()[0] for line in listing.output.splitlines()]
    assert re.findall(r"^\| `([a-z][a-z0-9-]*)` \|", document, re.M) == names
    ours = re.sub(r"^\$ (?!python benchmarks).*$", "", document, flags=re.M)
    options = set(re.findall(r"(?<![\w-])--[a-z]+", ours))
    assert options <= set(re.findall(r"--[a-z]+", usage.output))


def test_everything_that_a_peer_needs_has_a_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from harness.calls import CALLS
    from harness.environments import requirements
    from harness.events import EVENTS as SUITE
    from harness.transfers import TRANSFERS

    for each in [*CALLS.candidates, *TRANSFERS.candidates, *SUITE.candidates]:
        if each.home != "here":
            assert all("=" in line for line in requirements(each))
            assert len(requirements(each)) == len(each.needs) > 0


def _children(pid: int) -> list[int]:
    listings = [
        Path(f"/proc/{pid}/task/{thread}/children").read_text(encoding="ascii")
        for thread in os.listdir(f"/proc/{pid}/task")
    ]
    return [int(each) for listing in listings for each in listing.split()]
