"""Settings for fewer suggestions: only on request, snoozed, after dismissals, on battery; explicit requests always work."""

import time

import pytest

from fimserver.front import gate
from fimserver.front.energy import Energy
from tests.editor import Editor
from tests.hosts import ScriptedHost

URI, OTHER = "file:///work/main.py", "file:///work/notes.md"
CODE = "def add(a, b):\n    return \n"


@pytest.fixture
def host():
    with ScriptedHost() as host:
        host.says("a + b")
        yield host


@pytest.fixture
def waits_ms(monkeypatch):
    """How long each automatic request of a server in this process is to wait for the next key."""
    found, delay_ms = [], gate._delay_ms

    def noted(*given):
        found.append(delay_ms(*given))
        return found[-1]

    monkeypatch.setattr(gate, "_delay_ms", noted)
    return found


@pytest.fixture
def window(host):
    """An editor whose server runs in this process."""
    with Editor("process", host.url) as editor:
        yield editor


def begin(editor, **options):
    editor.start(options=options)
    editor.open(URI, CODE)


def refused(editor, reason, uri=URI, **options):
    assert editor.ask(uri, 1, 11, **options) == []
    assert editor.explain()["reason"] == reason


@pytest.mark.parametrize(
    ("options", "python", "markdown"),
    [
        ({"trigger": "onDemand"}, False, False),
        ({"triggers": {"markdown": "onDemand"}}, True, False),
        ({"trigger": "onDemand", "triggers": {"python": "automatic"}}, True, False),
    ],
)
def test_on_demand_there_is_nothing_unless_it_is_asked_for(options, python, markdown, connected, host):
    host.says("a + b")
    begin(connected, **options)
    connected.open(OTHER, CODE, language="markdown")
    for uri, is_automatic in ((URI, python), (OTHER, markdown)):
        if is_automatic:
            assert connected.ask(uri, 1, 11)
        else:
            refused(connected, "on_demand", uri)
        assert connected.ask(uri, 1, 11, invoked=True)


def test_the_menu_which_opens_by_itself_stays_empty_on_demand(window):
    begin(window, trigger="onDemand", menu="always")
    params = {
        "textDocument": {"uri": URI},
        "position": {"line": 1, "character": 11},
        "context": {"triggerKind": 1},
    }
    assert window.call("textDocument/completion", params)["items"] == []


def test_not_now(connected, host):
    host.says("a + b")
    begin(connected, status=True)
    assert connected.run("snooze") == 10
    refused(connected, "snoozed")
    assert connected.ask(URI, 1, 11, invoked=True)
    connected.wait_for(lambda e: any(n["params"].get("state") == "snoozed" for n in e.notifications))
    assert connected.run("snooze", 0) == 0
    connected.run("clearCache")
    assert connected.ask(URI, 1, 11)


def states(editor):
    """What the status was, in order."""
    return [n["params"]["state"] for n in editor.notifications if "state" in n["params"]]


def test_a_snooze_ends_by_itself_and_the_status_says_so(window):
    begin(window, status=True)
    window.run("snooze", 0.01)
    window.wait_for(lambda e: "snoozed" in states(e))
    window.wait_for(lambda e: states(e)[-1] == "ready")
    assert window.ask(URI, 1, 11)


@pytest.mark.parametrize("minutes", ["ten", None, True, {}, -5, 1e9])
def test_odd_snoozes_are_bounded(minutes, window):
    begin(window)
    assert 0 <= window.run("snooze", minutes) <= 24 * 60


def took_s(editor, column=11, **options):
    editor.run("clearCache")
    started = time.monotonic()
    assert editor.ask(URI, 1, column, **options)
    return time.monotonic() - started


def test_it_waits_longer_after_a_dismissal_but_not_when_asked(window, waits_ms):
    begin(window, calmDelayMs=700)
    first = window.ask(URI, 1, 11)[0]
    window.run("rejected", first["command"]["arguments"][0])
    assert took_s(window, invoked=True)
    assert waits_ms == [0]  # who asks explicitly does not wait
    assert took_s(window) >= 0.7
    assert waits_ms == [0, 700]


def test_it_waits_longer_while_deleting(window, waits_ms):
    begin(window, calmDelayMs=700, delayMs=0)
    window.edit(URI, 2, (1, 10), (1, 11), "")
    assert took_s(window, 10) >= 0.7
    window.type(URI, 3, 1, 10, " ")
    assert took_s(window)
    assert waits_ms == [700, 0]


@pytest.mark.parametrize(("least", "confidence", "shown"), [
    (0.3, 0.2, False), (0.3, 0.29, False), (0.3, 0.3, True), (0.3, 0.9, True), (0, 0.01, True), (1, 0.99, False),
    (0.9, None, True),
])  # fmt: skip
def test_what_is_unlikely_to_be_accepted_is_shown_only_when_asked_for(window, host, least, confidence, shown):
    host.engines.confidence = confidence
    begin(window, minAcceptance=least)
    if shown:
        assert window.ask(URI, 1, 11)
    else:
        refused(window, "unsure")
        refused(window, "unsure")  # also from memory
    assert window.ask(URI, 1, 11, invoked=True)
    assert window.explain()["confidence"] == confidence


def test_no_more_than_so_many_a_minute(window):
    begin(window, shownPerMinute=2)
    for number in range(2):
        uri = f"file:///work/{number}.py"
        window.open(uri, CODE)
        assert window.ask(uri, 1, 11)
    refused(window, "enough")
    assert window.ask(URI, 1, 11, invoked=True)


def on_battery(editor):
    editor.link.server.session.energy = Energy(lambda: "battery", run=lambda work: work())


@pytest.mark.parametrize(("battery", "slow"), [("save", True), ("ignore", False)])
def test_on_battery_it_waits_longer_and_asks_nothing_ahead(battery, slow, window, host, waits_ms):
    begin(window, battery=battery, prefetch=True, status=True)
    on_battery(window)
    took = took_s(window)
    assert waits_ms == [300 if slow else 0]
    if slow:
        assert took >= 0.3
        window.wait_for(lambda e: any(n["params"].get("power") == "battery" for n in e.notifications))
        assert len(host.engines.asked) == 1
    else:
        window.wait_until(lambda: len(host.engines.asked) == 2)


def test_off_on_battery(window):
    begin(window, battery="off")
    assert window.ask(URI, 1, 11)
    on_battery(window)
    refused(window, "battery")
    assert window.ask(URI, 1, 11, invoked=True)


def test_a_pause_lasts_until_it_is_asked_for_or_resumed(connected, host):
    host.says("a + b")
    begin(connected, status=True)
    assert connected.ask(URI, 1, 11)
    connected.run("clearCache")
    assert connected.run("pause", 5).startswith("paused for 5 minutes")
    refused(connected, "paused")
    connected.wait_for(lambda e: any(n["params"].get("state") == "paused" for n in e.notifications))
    assert connected.ask(URI, 1, 11, invoked=True)
    connected.run("pause")
    assert connected.run("pause", 0) == "resumed"
    connected.run("clearCache")
    connected.wait_until(lambda: connected.ask(URI, 1, 11))


def test_a_host_that_is_away_cannot_be_paused():
    with Editor("process", "http://127.0.0.1:1") as editor:
        editor.start()
        assert "does not answer" in editor.run("pause")
