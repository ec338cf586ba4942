"""Real Ray with two replicas of nano: documents stay, one replica dies under load, every request is answered once."""

import os
import threading
import time
from collections import Counter, defaultdict

import httpx2
import psutil
import pytest

pytest.importorskip("ray", reason="`make ray` installs it into an environment of its own")
import ray
from ray import serve

PORT = 8899
TOKEN = "secret"  # noqa: S105 - of the test alone
BODY = {"prompt": "def add(a, b):\n    return ", "suffix": "\n", "max_tokens": 8}


@pytest.fixture(scope="module")
def url():
    os.environ["FIMSERVER_TOKEN"] = TOKEN
    from fimserver import deploy

    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"port": PORT})
    args = {"allow_hosts": ["localhost"], "settings": {"model": "ar", "ar_card": "nano", "dllm_card": "nano"}}
    two = deploy.app(args)._bound_deployment.options(autoscaling_config=None, num_replicas=2)
    serve.run(two.bind(), route_prefix="/")
    yield f"http://localhost:{PORT}"
    serve.shutdown()
    ray.shutdown()


def asks(client, document):
    hints = {"session": "s", "document": document}
    return client.post(
        "/v1/completions", json=BODY | {"fimserver": hints}, headers={"x-session-id": document}
    )


def client_of(url):
    return httpx2.Client(
        base_url=url, headers={"Authorization": f"Bearer {TOKEN}"}, trust_env=False, timeout=60
    )


def test_the_token_is_asked_for(url):
    assert httpx2.get(f"{url}/health", trust_env=False).status_code == 401


def test_documents_stay_on_their_replica(url):
    seen = defaultdict(Counter)
    with client_of(url) as client:
        for _ in range(5):
            for document in range(20):
                answer = asks(client, f"document {document}")
                assert answer.status_code == 200
                seen[document][answer.headers["x-replica"]] += 1
    home = sum(max(counts.values()) for counts in seen.values())
    print(f"\n{home} of 100 requests at home, {len({r for c in seen.values() for r in c})} replicas")
    assert home == 100
    assert len({replica for counts in seen.values() for replica in counts}) == 2


def test_a_replica_dies_under_load_and_every_request_is_answered_once(url):
    answers, stop = [], threading.Event()

    def works(number):
        with client_of(url) as client:
            while not stop.is_set():
                started = time.monotonic()
                answer = asks(client, f"worker {number}")
                answers.append(
                    (answer.status_code, answer.headers.get("x-replica"), time.monotonic() - started)
                )

    workers = [threading.Thread(target=works, args=(number,)) for number in range(6)]
    for worker in workers:
        worker.start()
    time.sleep(3)
    before = {replica for _, replica, _ in answers if replica}
    mine = psutil.Process().children(recursive=True)
    victims = [each for each in mine if "ServeReplica" in " ".join(each.cmdline())]
    victims[0].kill()
    end = time.monotonic() + 60
    while (
        len({replica for _, replica, _ in answers[-200:] if replica} - before) < 1 and time.monotonic() < end
    ):
        time.sleep(0.2)
    stop.set()
    for worker in workers:
        worker.join(60)
        assert not worker.is_alive()
    counts = Counter(status for status, _, _ in answers)
    print(f"\nstatus: {dict(counts)}; longest wait {max(s for _, _, s in answers):.1f} s")
    assert counts[200] > 0.9 * len(answers)
    assert set(counts) <= {200, 429, 500, 503}
    assert {replica for _, replica, _ in answers[-200:] if replica} - before, "no new replica within 60 s"
