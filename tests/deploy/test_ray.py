"""Real Ray with replicas of nano: documents stay, one dies under load, a model is rolled out, and it scales."""

import time
from collections import Counter, defaultdict

import httpx2
import psutil
import pytest

pytest.importorskip("ray", reason="`make ray` installs it into an environment of its own")

from fimserver.host.deployment import Scale
from tests.deploy.clusters import (
    LONG,
    TOKEN,
    Load,
    ask,
    assert_each_has_its_own,
    client_of,
    running,
    start,
    two,
    until,
)


@pytest.fixture(scope="module")
def url(cluster):
    two()
    return cluster[0]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": f"Bearer {TOKEN}", "Host": "evil.example"}, 403),
        ({"Authorization": f"Bearer {TOKEN}", "Origin": "http://localhost"}, 403),
        ({"Authorization": f"Bearer {TOKEN}"}, 200),
        ({"Authorization": f"Bearer {TOKEN}", "Host": "localhost"}, 200),
    ],
)
def test_who_is_served_is_as_on_one_machine(url, headers, status):
    for path in ("/health", "/v1/models", "/metrics"):
        assert httpx2.get(url + path, headers=headers, trust_env=False).status_code == status


def test_documents_stay_on_their_replica(url):
    seen = defaultdict(Counter)
    with client_of(url) as client:
        for _ in range(5):
            for document in range(20):
                answer = ask(client, f"document {document}")
                assert answer.status_code == 200
                seen[document][answer.headers["x-replica"]] += 1
    home = sum(max(counts.values()) for counts in seen.values())
    print(f"\n{home} of 100 requests of 20 documents on their replica")
    assert home == 100
    assert len({replica for counts in seen.values() for replica in counts}) == 2


def test_the_figures_of_all_replicas_are_in_one_place(url, cluster):
    def shown():
        text = httpx2.get(cluster[1], trust_env=False).text
        lines = [line for line in text.splitlines() if line.startswith("ray_fimserver_choices_total{")]
        served = [line for line in lines if 'route="ar"' in line]
        return sum(float(line.split()[-1]) for line in served) >= 100 and len(served) >= 2

    until(shown)
    text = httpx2.get(cluster[1], trust_env=False).text
    assert "ray_serve_num_http_requests" in text
    assert "ray_fimserver_ttft_seconds_bucket" in text


@pytest.mark.parametrize("asked", [{}, LONG], ids=["short", "long"])
def test_a_replica_dies_under_load_and_every_request_is_answered_once(url, asked):
    until(lambda: running() == 2)
    with Load(url, 6, **asked) as load:
        load.until(lambda _: len(load.replicas()) == 2)
        before = load.replicas()
        mine = psutil.Process().children(recursive=True)
        next(each for each in mine if "ServeReplica" in " ".join(each.cmdline())).kill()
        load.until(lambda _: load.replicas() - before)
    print(f"\nstatus: {load.counts()}; longest wait {load.longest_s():.1f} s")
    assert set(load.counts()) == {200}
    assert_each_has_its_own(load.answers)
    assert len({answer.text for answer in load.answers}) == 1


def test_a_model_is_rolled_out_under_load_and_every_request_is_answered_whole(url):
    with Load(url, 6, **LONG) as load:
        load.until(lambda _: len(load.replicas()) == 2)
        before = load.replicas()
        two(model="dllm")
        rolled_out = time.monotonic()
        load.until(lambda answers: sum(answer.asked > rolled_out for answer in answers) >= 30)
    late = [answer for answer in load.answers if answer.asked > rolled_out]
    print(f"\nstatus: {load.counts()}; longest wait {load.longest_s():.1f} s")
    assert set(load.counts()) == {200}
    assert_each_has_its_own(load.answers)
    assert {answer.route for answer in load.answers} == {"ar", "dllm"}
    assert {answer.route for answer in late} == {"dllm"}
    assert not {answer.replica for answer in late} & before
    for route in ("ar", "dllm"):
        assert len({answer.text for answer in load.answers if answer.route == route}) == 1


def test_replicas_are_added_under_load_and_removed_after_it_without_an_answer_lost(url):
    quick = {"upscale_delay_s": 1, "downscale_delay_s": 2, "look_back_period_s": 2}
    start(Scale(min_replicas=1, max_replicas=2, queue=2), quick)
    until(lambda: running() == 1)
    with Load(url, 8, **LONG) as load:
        until(lambda: running() == 2)
        alone = load.replicas()
        load.until(lambda _: load.replicas() - alone)
    with Load(url, 1) as rest:
        until(lambda: running() == 1)
        rest.until_more()
    print(f"\nup: {load.counts()}; longest wait {load.longest_s():.1f} s; down: {rest.counts()}")
    for each in (load, rest):
        assert set(each.counts()) == {200}
        assert_each_has_its_own(each.answers)
