"""Ray with replicas of nano, and clients that load it and keep every answer."""

import threading
import time
from dataclasses import dataclass

import httpx2
from ray import serve

from fimserver.deploy import NAME, application
from fimserver.host.deployment import Deployment, Scale
from fimserver.host.sockets import LOOPBACK
from fimserver.settings import Settings

TOKEN = "secret"  # noqa: S105 - of the tests alone
SETTINGS = {"model": "ar", "ar_card": "nano", "dllm_card": "nano"}
LONG = {"prompt": "a = 1\nb = 2\nc = 3\nd = 4\n", "suffix": "", "max_tokens": 1024}
BODY = {"prompt": "def add(a, b):\n    return ", "suffix": "\n", "max_tokens": 8}
RUNNING = "RUNNING"
PATIENCE_S = 300.0  # a replica imports torch; on a busy machine that takes a minute


def until(true):
    """Wait for something that happens on a cluster."""
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def start(scale, scaling=None, **settings):
    """Deploy, or roll out over what is there; until it is ready. ``scaling`` changes how Serve scales it."""
    what = Deployment(Settings(**SETTINGS | settings), TOKEN, LOOPBACK)
    served = application(what, scale)
    if scaling:
        known = served._bound_deployment
        config = known._deployment_config.autoscaling_config.model_dump(exclude_unset=True) | scaling
        served = known.options(autoscaling_config=config).bind()
    serve.run(served, name=NAME, route_prefix="/")


def two(**settings):
    start(Scale(min_replicas=2, max_replicas=2), **settings)


def running():
    """How many replicas run."""
    application = serve.status().applications[NAME]
    return application.deployments[NAME].replica_states.get(RUNNING, 0)


def client_of(url, token=TOKEN):
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx2.Client(base_url=url, headers=headers, trust_env=False, timeout=PATIENCE_S)


def ask(client, document, **changes):
    hints = {"session": "s", "document": document, "stop": "none"}
    return client.post(
        "/v1/completions",
        json=BODY | changes | {"fimserver": hints},
        headers={"x-session-id": document},
    )


@dataclass(frozen=True)
class Answered:
    status: int  # 0: the connection broke
    replica: str
    number: str  # of the answer
    text: str
    route: str
    asked: float  # on the monotonic clock
    seconds: float


class Load:
    """Clients, each with a document, that ask one request after the other until the end of the block."""

    def __init__(self, url, clients, **changes):
        self.answers = []
        self._url = url
        self._changes = changes
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._works, args=(n,)) for n in range(clients)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), "a request was never answered"

    def _works(self, number):
        with client_of(self._url) as client:
            while not self._stop.is_set():
                started = time.monotonic()
                try:
                    self.answers.append(read(ask(client, f"client {number}", **self._changes), started))
                except httpx2.HTTPError:
                    self.answers.append(Answered(0, "", "", "", "", started, time.monotonic() - started))

    def until(self, true):
        until(lambda: true(self.answers))

    def until_more(self, count=20):
        """Until so many more answers are there."""
        goal = len(self.answers) + count
        self.until(lambda answers: len(answers) >= goal)

    def counts(self):
        return {s: sum(a.status == s for a in self.answers) for s in sorted({a.status for a in self.answers})}

    def longest_s(self):
        return max(a.seconds for a in self.answers)

    def replicas(self):
        return {a.replica for a in self.answers if a.replica}


def read(response, started):
    """What came back, since ``started``."""
    number = text = route = ""
    if response.status_code == 200:
        body = response.json()
        number = body["id"]
        text = body["choices"][0]["text"]
        route = body["fimserver"][0]["route"]
    replica = response.headers.get("x-replica", "")
    return Answered(response.status_code, replica, number, text, route, started, time.monotonic() - started)


def assert_each_has_its_own(answers):
    """No answer was given to two requests."""
    numbers = [answer.number for answer in answers if answer.status == 200]
    assert len(set(numbers)) == len(numbers)
