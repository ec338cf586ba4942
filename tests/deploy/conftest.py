"""A Ray cluster of this process, for the tests that need a real one."""

import pytest

from fimserver.host.http.second_try import RAY_VALUE, RAY_VARIABLE
from tests.hosts import free_port


@pytest.fixture(scope="package")
def folders(tmp_path_factory):
    """Statistics and caches of the replicas are not those of the person who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("user")
        for kind in ("CACHE", "CONFIG", "DATA", "STATE"):
            patch.setenv(f"XDG_{kind}_HOME", str(root / kind.lower()))
        patch.setenv("FIMSERVER_THREADS", "1")
        patch.setenv(RAY_VARIABLE, RAY_VALUE)
        yield root


@pytest.fixture(scope="package")
def cluster(folders):
    """Serve without an application: its URL and that of Ray's figures."""
    ray = pytest.importorskip("ray", reason="`make ray` installs it into an environment of its own")
    from ray import serve

    port, figures = free_port(), free_port()
    ray.init(
        num_cpus=8,
        include_dashboard=False,
        log_to_driver=False,
        _metrics_export_port=figures,
        address="local",
    )
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield f"http://127.0.0.1:{port}", f"http://127.0.0.1:{figures}/metrics"
    serve.shutdown()
    ray.shutdown()
