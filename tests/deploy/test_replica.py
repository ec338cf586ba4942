"""A replica without Ray: ready with its models, checked, closed; and the id that keeps a document on one replica."""

import pytest
from starlette.testclient import TestClient

from fimserver.errors import ModelError
from fimserver.front.host_client import routing_id
from fimserver.host.replica import Replica
from fimserver.reasons import Reason
from fimserver.settings import Settings
from fimserver.wire import EditorHints

NANO = {"ar_card": "nano", "dllm_card": "nano"}


def test_it_is_ready_when_its_models_are_and_wants_the_token():
    replica = Replica(Settings(**NANO), "secret", frozenset({"testserver"}))
    client = TestClient(replica.open())
    try:
        assert client.get("/health").status_code == 401
        client.headers["Authorization"] = "Bearer secret"
        assert client.get("/health").json()["status"] == "ok"
        assert client.get("/health", headers={"Host": "elsewhere"}).status_code == 403
        answer = client.post(
            "/v1/completions", json={"prompt": "def add(a, b):\n    return ", "suffix": "\n"}
        )
        assert answer.json()["fimserver"][0]["model"] == "nano"
        replica.check()
    finally:
        replica.close()


def test_one_without_models_is_to_be_replaced():
    replica = Replica(Settings(ar_card="no-such-card"), "secret", frozenset())
    with pytest.raises(ModelError, match="no-such-card"):
        replica.open()
    replica.close()


def test_one_that_lost_its_device_is_to_be_replaced():
    replica = Replica(Settings(**NANO), "secret", frozenset())
    replica.scheduler.state = Reason.FAILED
    replica.scheduler.problem = "the device was lost"
    with pytest.raises(ModelError, match="lost"):
        replica.check()


def test_a_document_of_a_window_has_one_id_and_others_have_others():
    hints = [EditorHints(session=s, document=d) for s in ("a", "b", "ä") for d in ("x", "y", "\n")]
    ids = [routing_id(each) for each in hints]
    assert len(set(ids)) == len(hints)
    assert all(each.isascii() and each.isalnum() for each in ids)
    assert ids[0] == routing_id(EditorHints(session="a", document="x", path="other", idle=True))
