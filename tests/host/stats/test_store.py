"""The statistics file: writing, summaries, and damage."""

import math
import random
import sqlite3
import stat
import threading
import time
from contextlib import closing

import pytest

from fimserver.events import AnswerRecord, Batch, Persistence, SuggestionEvent
from fimserver.host.http.stats_page import page, sentences
from fimserver.host.routing.router import KeepCounts
from fimserver.host.stats.store import DAY_S, KEEP_DAYS, KEPT_S, Stats, reading, stats_path
from fimserver.host.stats.summary import SHARES, Difference, comparison, percentiles, summary
from fimserver.types import ROUTES

NOW = 1_750_000_000.0


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data" / "stats.sqlite"


@pytest.fixture
def stats(path):
    return Stats(path)


def answer(number, **changes):
    known = {
        "at": time.time() - 60, "document": "d0", "language": "python", "route": "ar", "model": "nano", "source": "model",
        "reason": "end", "bucket": 0, "chars": 10, "lexemes": 4, "total_ms": 100.0, "shown": True,
    }  # fmt: skip
    return AnswerRecord.model_validate(known | changes | {"number": number})


def kept(number, chars, **changes):
    stands = Persistence(prefix_chars=0, kept_chars=chars)
    known = {"fate": "full" if chars else "left", "accepted_chars": chars, "after_60s": stands}
    return answer(number, **known | changes)


def batch(*answers, session="aa", **counts):
    return Batch(session=session, answers=answers, **counts)


def rows(path, query="SELECT COUNT(*) FROM answers"):
    with reading(path) as base:
        return base.execute(query).fetchall()


def test_an_answer_that_is_told_again_is_the_same(stats, path):
    stats.add(batch(answer(1), answer(2)))
    stats.add(batch(kept(1, 10)))
    stats.add(batch(answer(1), session="bb"))
    assert rows(path, "SELECT session, number, fate, kept_60s FROM answers ORDER BY 1, 2") == [
        ("aa", 1, "full", 10), ("aa", 2, "", None), ("bb", 1, "", None),
    ]  # fmt: skip


def test_everything_that_was_told_is_in_the_row(stats, path):
    shadow = SuggestionEvent(
        route="dllm",
        model="m",
        reason="line",
        chars=3,
        total_ms=9.0,
        after_10s=Persistence(prefix_chars=1, kept_chars=2),
    )
    stats.add(batch(answer(1, policy="shadow", propensity=0.5, block=7, first=True, shadow=shadow)))
    (found,) = rows(
        path,
        "SELECT policy, propensity, block, first, shown, shadow_route, shadow_kept_10s, shadow_chars FROM answers",
    )
    assert found == ("shadow", 0.5, 7, 1, 1, "dllm", 2, 3)


def test_the_file_is_the_users_alone(stats, path):
    stats.add(batch(answer(1)))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_two_hosts_write_the_same_file(path):
    hosts = [Stats(path) for _ in range(2)]

    def work(number):
        for i in range(20):
            hosts[number].add(batch(answer(i), session=f"{number}", keys={"python": 1}))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rows(path) == [(40,)]
    assert rows(path, "SELECT SUM(count) FROM counts") == [(40,)]
    assert [host.missed for host in hosts] == [0, 0]


def test_a_file_that_another_holds_costs_the_batch_and_no_more(stats, path, monkeypatch, caplog):
    monkeypatch.setattr("fimserver.host.stats.store.BUSY_S", 0.01)
    stats.add(batch(answer(1)))
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        stats.add(batch(answer(2)))
        stats.add(batch(answer(3)))
    stats.add(batch(answer(4)))
    assert rows(path) == [(2,)]
    assert (stats.missed, stats.problem) == (2, "")
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    "damage", [lambda _: b"no database " * 400, lambda data: data[:100] + b"\xff" * (len(data) - 100)]
)
def test_a_damaged_file_is_put_aside_and_begun_anew(path, damage, caplog):
    Stats(path).add(batch(answer(1)))
    path.write_bytes(damage(path.read_bytes()))
    stats = Stats(path)
    stats.add(batch(answer(2)))
    stats.add(batch(answer(3)))
    assert rows(path, "SELECT number FROM answers") == [(2,), (3,)]
    assert len(list(path.parent.glob("stats.sqlite.damaged-*"))) == 1
    assert len(caplog.records) == 1
    assert stats.problem == ""


def test_what_became_of_suggestions_is_known_with_the_confidence_in_them(stats):
    told = [
        kept(1, 10, confidence=0.75), kept(2, 0, confidence=0.5), kept(3, 0, confidence=0.5, typed_chars=4),
        kept(4, 10), answer(5, confidence=0.5), kept(6, 3, confidence=0.5, model="another"),
    ]  # fmt: skip
    stats.add(batch(*told))
    assert sorted(stats.settled("ar", "nano")) == [(0.5, False), (0.5, True), (0.75, True)]
    assert stats.settled("dllm", "nano") == ()


def test_a_file_of_the_version_before_is_brought_up_to_date(path):
    Stats(path).add(batch(kept(1, 10)))
    with closing(sqlite3.connect(path)) as base:
        base.execute("ALTER TABLE answers DROP COLUMN confidence")
        base.execute("PRAGMA user_version = 1")
    stats = Stats(path)
    assert stats.settled("ar", "nano") == ()
    stats.add(batch(kept(2, 10, confidence=0.5)))
    assert stats.problem == ""
    assert rows(path) == [(2,)]
    assert Stats(path).settled("ar", "nano") == ((0.5, True),)


def a_folder(path):
    path.mkdir(parents=True)


def from_the_future(path):
    Stats(path).add(batch(answer(1)))
    with closing(sqlite3.connect(path)) as base:
        base.execute("PRAGMA user_version = 99")


def a_file_for_a_folder(path):
    path.parent.write_text("")


@pytest.mark.parametrize("spoil", [a_folder, from_the_future, a_file_for_a_folder])
def test_what_cannot_be_written_ends_the_counting_with_one_line(path, spoil, caplog):
    spoil(path)
    stats = Stats(path)
    for number in range(3):
        stats.add(batch(answer(number)))
    assert stats.problem
    assert len(caplog.records) == 1
    assert str(path.parent) not in caplog.text
    assert stats.kept("ar", "nano") == ()
    assert summary(path, 30, stats.problem).is_empty


def test_a_read_only_file_ends_the_counting(stats, path, monkeypatch, caplog):
    stats.add(batch(answer(1)))

    def read_only(path):
        return sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, isolation_level=None)

    monkeypatch.setattr("fimserver.host.stats.store._open", read_only)  # root may write what is not writable
    stats.add(batch(answer(2)))
    assert "READONLY" in stats.problem
    assert len(caplog.records) == 1


def test_without_a_path_nothing_is_counted():
    stats = Stats()
    stats.add(batch(answer(1)))
    assert (stats.kept("ar", "nano"), stats.problem) == ((), "statistics are off")


def test_what_is_old_goes(path):
    stats = Stats(path, lambda: NOW)
    stats.add(batch(answer(1, at=NOW - (KEEP_DAYS + 1) * DAY_S), answer(2, at=NOW)))
    assert rows(path, "SELECT number FROM answers") == [(2,)]


def test_they_are_in_the_users_data_folder(tmp_path):
    assert stats_path() == tmp_path / "data" / "fimserver" / "stats.sqlite"


def test_what_was_kept_of_each_length_is_at_most_half_a_minute_old(path):
    now = NOW
    stats = Stats(path, lambda: now)
    assert stats.kept("ar", "nano") == ()
    now += KEPT_S
    told = (
        kept(1, 10, at=now),
        kept(2, 0, at=now, typed_chars=3),
        kept(3, 7, lexemes=99, at=now),
        answer(4, at=now),
    )
    useless = (
        answer(9, chars=0, lexemes=0, bucket=2, reason="duplicate", shown=False, at=now),
        answer(10, chars=0, lexemes=0, bucket=2, reason="cancelled", shown=False, at=now),  # nobody knows
    )
    others = (kept(5, 99, route="dllm", at=now), kept(6, 99, model="other", at=now), kept(7, 99, at=0.0))
    stats.add(batch(*told, *useless, *others))
    expected = (KeepCounts(2, 1.3), KeepCounts(0, 0), KeepCounts(1, 0), KeepCounts(0, 0), KeepCounts(1, 0.7))
    assert stats.kept("ar", "nano") == expected
    stats.add(batch(kept(8, 50, at=now)))  # more than it had: all of it
    assert stats.kept("ar", "nano") == expected
    now += KEPT_S
    assert stats.kept("ar", "nano")[0] == KeepCounts(3, 2.3)


# ---------------------------------------------------------------- what is read off


def test_nothing_yet_is_said(path):
    found = summary(path, 30)
    assert found.is_empty
    assert "Nothing was counted yet" in page(found)


def test_a_line_for_each_route_language_and_bucket(stats, path):
    stats.add(
        batch(
            kept(1, 10, total_ms=10.0),
            kept(2, 10, total_ms=20.0, fate="partly"),
            kept(3, 0, total_ms=30.0, typed_chars=4),
            kept(4, 0, bucket=2, total_ms=40.0),
            kept(5, 6, route="dllm", language=""),
            answer(6, route="", model="", source="memory", total_ms=1.0),
            answer(7, shown=False),
            keys={"python": 200, "": 50},
            dropped=3,
        )
    )
    found = summary(path, 30)
    assert [
        (x.route, x.language, x.bucket, x.shown, x.full, x.partly, x.kept_chars, x.per_100_keys)
        for x in found.lines
    ] == [
        ("dllm", "other", "1-8", 1, 1, 0, 6, 12.0),
        ("ar", "python", "1-8", 3, 1, 1, 24, 12.0),
        ("ar", "python", "17-32", 1, 0, 0, 0, 0.0),
        ("memory", "python", "1-8", 1, 0, 0, 0, 0.0),
    ]
    assert [(x.route, x.shown, x.kept_chars, x.per_100_keys) for x in found.routes] == [
        ("dllm", 1, 6, 2.4), ("ar", 4, 24, 9.6), ("memory", 1, 0, 0.0),
    ]  # fmt: skip
    assert found.routes[1].ms == (20.0, 40.0, 40.0, 40.0)
    assert found.routes[2].ms == ()
    assert (found.keys, found.dropped) == ({"python": 200, "other": 50}, 3)


def test_without_keys_there_is_no_rate(stats, path):
    stats.add(batch(kept(1, 10)))
    assert summary(path, 30).lines[0].per_100_keys is None


def test_why_nothing_was_shown_is_counted_and_explained(stats, path):
    nothing = {"shown": False, "chars": 0}
    stats.add(
        batch(
            *(answer(i, reason="superseded", **nothing) for i in range(3)),
            answer(9, reason="empty", **nothing),
            answer(10),
        )
    )
    assert [(x.reason, x.count) for x in summary(path, 30).nothing] == [("superseded", 3), ("empty", 1)]
    assert summary(path, 30).nothing[1].explanation == "the model found that nothing belongs here"


def test_only_the_days_that_were_asked_for_count(stats, path):
    stats.add(batch(answer(1), answer(2, at=time.time() - 9 * DAY_S)))
    assert [summary(path, days).routes[0].shown for days in (1, 30)] == [1, 2]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], ()),
        ([5.0], (5.0,) * 4),
        (list(range(1, 101)), (50, 90, 95, 99)),
        ([3.0, 1.0, 2.0], (2.0, 3.0, 3.0, 3.0)),
    ],
)
def test_percentiles_are_values_that_were_measured(values, expected):
    assert SHARES == (0.5, 0.9, 0.95, 0.99)
    assert percentiles(values) == expected


def trial(stats, blocks, chars_of, policy="blocks", ms_of=lambda _: 100.0, **changes):
    """Blocks of two answers with randomly drawn routes."""
    answers, coin = [], random.Random(0)
    for block in range(blocks):
        route = coin.choice(ROUTES)
        for i in range(2):
            known = {
                "policy": policy,
                "propensity": 0.5,
                "block": block + 1,
                "route": route,
                "total_ms": ms_of(route),
            }
            known |= {"at": answer(0).at + block / 100, "document": f"{block % 3:x}"}
            answers.append(kept(2 * block + i, chars_of(route, block), **known | changes))
    for start in range(0, len(answers), 100):
        stats.add(batch(*answers[start : start + 100]))


def compared(path, mode="blocks"):
    with reading(path) as base:
        return comparison(base, mode, 0.0)


def test_a_difference_between_blocks_is_found(stats, path):
    trial(
        stats,
        400,
        lambda route, block: (14 if route == "dllm" else 4) + block % 5,
        ms_of={"ar": 50.0, "dllm": 200.0}.get,
    )
    found = compared(path)
    assert found.answers == 800
    assert found.kept_chars.low < 10 < found.kept_chars.high
    assert found.kept_chars.low > 5
    assert found.times_as_long.low < 4.0 < found.times_as_long.high
    assert found.times_as_long.low > 1
    assert found.kept_chars.blocks == 399


def test_routes_that_are_alike_show_no_difference(stats, path):
    trial(stats, 100, lambda _, block: 4 + block % 7)
    found = compared(path)
    assert found.kept_chars.low < 0 < found.kept_chars.high


def test_a_shadow_is_compared_with_what_was_shown_beside_it(stats, path):
    for block in range(60):
        route, other = ("dllm", "ar") if block % 2 else ("ar", "dllm")
        chars = {"dllm": 9 + block % 3, "ar": 4}
        shadow = SuggestionEvent(
            route=other, reason="end", after_60s=Persistence(prefix_chars=0, kept_chars=chars[other])
        )
        known = {"policy": "shadow", "propensity": 0.5, "block": block + 1, "route": route, "shadow": shadow}
        stats.add(batch(kept(block, chars[route], **known)))
    found = compared(path, "shadow")
    assert found.kept_chars.value == pytest.approx(6.0)
    assert found.kept_chars.low > 5
    assert compared(path, "blocks") is None


@pytest.mark.parametrize(
    "changes",
    [{"first": True}, {"policy": "bandit"}, {"block": 0}, {"shown": False}, {"after_60s": None}],
    ids=str,
)
def test_what_is_no_part_of_the_comparison(stats, path, changes):
    trial(stats, 30, lambda _route, _block: 5, **changes)
    assert compared(path) is None


def test_too_little_is_said_to_be_too_little(stats, path):
    trial(stats, 6, lambda route, _: 5 if route == "ar" else 9)
    found = compared(path)
    assert (found.kept_chars.low, found.kept_chars.high) == (None, None)
    assert "not known yet: 5 blocks" in " ".join(sentences(found))
    assert summary(path, 30).model_dump_json()


def test_a_difference_on_another_scale():
    found = Difference(value=0.0, low=None, high=math.log(2), blocks=3).mapped(math.exp)
    assert (found.value, found.low, round(found.high, 9), found.blocks) == (1.0, None, 2.0, 3)


# ---------------------------------------------------------------- the page


def test_names_are_text_on_the_page_whatever_they_are(stats, path):
    stats.add(batch(kept(1, 10), keys={"python": 3}))
    with closing(sqlite3.connect(path)) as base:
        base.execute("UPDATE answers SET language = '<script>alert(1)</script>', route = '\"><img src=x>'")
        base.execute("UPDATE counts SET language = '<b>'")
        base.execute(
            "INSERT INTO answers (session, number, at, reason, shown, chars) VALUES ('x', 1, 9e9, '<i>', 0, 0)"
        )
        base.commit()
    html = page(summary(path, 30))
    for markup in ("<script", "<img", "<b>", "<i>"):
        assert markup not in html
    assert "&lt;script&gt;" in html


def test_the_page_loads_nothing_and_refreshes_only_where_it_can(stats, path):
    trial(stats, 60, lambda _, block: 5 + block % 2)
    found = summary(path, 30)
    html = page(found, refreshes=True)
    assert 'http-equiv="refresh" content="10"' in html
    assert 'http-equiv="refresh"' not in page(found)
    assert "http://" not in html
    assert "https://" not in html
    assert 'style="' not in html
    assert "default-src &#39;none&#39;" in html
    assert "<svg" in html
