"""A proxy whose replica dies: it asks once more if nothing was sent, never if something was."""

import asyncio

import pytest

from fimserver.host.http.second_try import SecondTry, middlewares

START = {"type": "http.response.start", "status": 200, "headers": [(b"x-replica", b"a")]}
WHOLE = {"type": "http.response.body", "body": b"text"}
PART = {"type": "http.response.body", "body": b"te", "more_body": True}
NOTHING = {"type": "http.response.body", "body": b"", "more_body": True}
EMPTY = {"type": "http.response.body", "body": b""}
REQUEST = (
    {"type": "http.request", "body": b"half a ", "more_body": True},
    {"type": "http.request", "body": b"question", "more_body": False},
)
GONE = {"type": "http.disconnect"}


class Replicas:
    """The application of a proxy: each try says so much and ends. Keeps the body and headers it was given."""

    def __init__(self, *says, reads=2):
        self.bodies = []
        self.headers = []
        self._says = list(says)
        self._reads = reads

    async def __call__(self, scope, receive, send):
        scope["headers"].append((b"x-request-id", b"%d" % len(self.bodies)))
        self.headers.append(scope["headers"])
        messages = [await receive() for _ in range(self._reads)]
        self.bodies.append(b"".join(message.get("body", b"") for message in messages))
        for message in self._says.pop(0):
            await send(message)


def asked(replicas, request=REQUEST, kind="http"):
    """What a client of the proxy receives."""
    left = list(request)
    sent = []

    async def receive():
        return left.pop(0)

    async def send(message):
        sent.append(message)

    asyncio.run(SecondTry(replicas)({"type": kind, "headers": [(b"host", b"box")]}, receive, send))
    return sent


def test_a_request_whose_replica_died_is_asked_again_whole():
    replicas = Replicas([], [START, WHOLE])
    assert asked(replicas) == [START, WHOLE]
    assert replicas.bodies == [b"half a question"] * 2
    assert replicas.headers == [[(b"host", b"box"), (b"x-request-id", b"%d" % n)] for n in range(2)]


def test_what_the_dead_replica_had_not_read_yet_comes_from_the_client():
    class Greedier(Replicas):
        """Reads a message more at each try."""

        async def __call__(self, scope, receive, send):
            self._reads = len(self.bodies) + 1
            await super().__call__(scope, receive, send)

    replicas = Greedier([], [START, WHOLE])
    assert asked(replicas) == [START, WHOLE]
    assert replicas.bodies == [b"half a ", b"half a question"]


@pytest.mark.parametrize("lost", [[START], [START, NOTHING]], ids=["head", "empty part"])
def test_a_head_without_a_body_is_not_yet_an_answer(lost):
    replicas = Replicas(lost, [START, PART, EMPTY])
    assert asked(replicas) == [START, PART, EMPTY]


@pytest.mark.parametrize(
    "said", [[START, WHOLE], [START, PART], [START, EMPTY]], ids=["whole", "half", "empty"]
)
def test_what_was_said_is_never_asked_again(said):
    replicas = Replicas(said)
    assert asked(replicas) == said
    assert len(replicas.bodies) == 1


def test_an_error_of_the_replica_is_an_answer():
    failed = {**START, "status": 500}
    assert asked(Replicas([failed, WHOLE])) == [failed, WHOLE]


def test_a_request_is_asked_again_once():
    replicas = Replicas([], [])
    assert asked(replicas) == []  # the server makes a 500 of it
    assert len(replicas.bodies) == 2


def test_a_client_that_left_is_not_asked_for():
    replicas = Replicas([], reads=3)
    assert asked(replicas, (*REQUEST, GONE)) == []
    assert len(replicas.bodies) == 1


def test_other_connections_pass():
    replicas = Replicas([], reads=1)
    assert asked(replicas, kind="websocket") == []
    assert len(replicas.bodies) == 1


def test_ray_gets_middleware_that_it_takes():
    (middleware,) = middlewares()
    app = Replicas([], [START, WHOLE])
    assert isinstance(middleware.cls(app, *middleware.args, **middleware.kwargs), SecondTry)
