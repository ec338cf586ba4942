"""Files for Ray Serve and the options of a deployment, without Ray."""

import importlib
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from fimserver.cli import main
from fimserver.errors import CardError, InputError
from fimserver.host.deployment import Scale, deployment_of
from fimserver.host.http.second_try import RAY_VALUE, RAY_VARIABLE

EXAMPLES = Path(__file__).parents[2] / "examples" / "deploy"


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def written(tmp_path, *options):
    path = tmp_path / "fimserver.yaml"
    result = run("deploy", "init", path, *options)
    assert result.exit_code == 0, result.stderr
    return yaml.safe_load(path.read_text("utf-8"))


def application(tmp_path, *options):
    return written(tmp_path, *options)["applications"][0]


class TestAFile:
    def test_has_what_was_asked_for(self, tmp_path):
        file = written(
            tmp_path,
            *("--listen", "0.0.0.0:9000", "--allow-host", "gpu-box", "--allow-host", "b", "--gpus", 0.5),
            *(
                "--min-replicas",
                2,
                "--max-replicas",
                8,
                "--queue",
                3,
                "--ar-card",
                "nano",
                "--max-tokens",
                32,
            ),
        )
        assert file["http_options"] == {"host": "0.0.0.0", "port": 9000}  # noqa: S104
        (app,) = file["applications"]
        assert app["import_path"] == "fimserver.deploy:app"
        assert app["args"] == {
            "allow_hosts": ["gpu-box", "b"],
            "settings": {"ar_card": "nano", "max_tokens": 32},
        }
        (deployment,) = app["deployments"]
        assert deployment["ray_actor_options"]["num_gpus"] == 0.5
        scaling = deployment["autoscaling_config"]
        assert (scaling["min_replicas"], scaling["max_replicas"]) == (2, 8)
        assert scaling["target_ongoing_requests"] == 3
        assert deployment["max_ongoing_requests"] == 12

    def test_is_read_by_the_deployment_that_it_names(self, tmp_path, monkeypatch):
        args = application(tmp_path, "--allow-host", "gpu-box", "--seed", 7)["args"]
        monkeypatch.setenv("FIMSERVER_TOKEN", "secret")
        what = deployment_of(args)
        assert what.token == os.environ["FIMSERVER_TOKEN"]
        assert what.settings.seed == 7
        assert what.allowed_hosts == {"gpu-box", "localhost", "127.0.0.1", "::1"}

    def test_never_has_the_token(self, tmp_path, monkeypatch):
        monkeypatch.setenv("FIMSERVER_TOKEN", "hunter2")
        assert "hunter2" not in str(written(tmp_path))
        result = run("deploy", "init", tmp_path / "other.yaml", "--token", "hunter2")
        assert result.exit_code == 2
        assert "hunter2" not in result.stderr
        assert not (tmp_path / "other.yaml").exists()

    def test_of_another_is_left_as_it_is(self, tmp_path):
        path = tmp_path / "fimserver.yaml"
        path.write_text("mine")
        result = run("deploy", "init", path)
        assert (result.exit_code, path.read_text()) == (2, "mine")
        assert "is there already" in result.stderr

    def test_cannot_be_written_where_there_is_no_folder(self, tmp_path):
        result = run("deploy", "init", tmp_path / "none" / "a.yaml")
        assert result.exit_code == 2
        assert result.stderr.count("\n") == 1

    def test_goes_to_the_standard_output_as_a_dash(self):
        assert yaml.safe_load(run("deploy", "init", "-").stdout)["proxy_location"] == "EveryNode"

    @pytest.mark.parametrize("name", ["a: b\n- c.yaml", "#'\"{}.yaml"])
    def test_may_have_any_name(self, tmp_path, name):
        path = tmp_path / name
        assert run("deploy", "init", path).exit_code == 0
        assert yaml.safe_load(path.read_text("utf-8"))["applications"]

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            (("--min-replicas", 5, "--max-replicas", 2), "more than"),
            (("--min-replicas", 0), "--min-replicas"),
            (("--queue", 0), "--queue"),
            (("--gpus", -1), "--gpus"),
            (("--listen", "everywhere"), "HOST:PORT"),
            (("--allow-host", "a b"), "not a host name"),
            (("--ar-card", "no-such-card"), "no-such-card"),
            (("--max-tokens", 0), "max_tokens"),
        ],
    )
    def test_is_not_written_where_an_option_is_wrong(self, tmp_path, options, says):
        result = run("deploy", "init", tmp_path / "a.yaml", *options)
        assert result.exit_code == 2
        assert says in result.stderr
        assert "Traceback" not in result.stderr
        assert not (tmp_path / "a.yaml").exists()

    def test_with_more_replicas_at_least_than_the_usual_most(self, tmp_path):
        scaling = application(tmp_path, "--min-replicas", 9)["deployments"][0]["autoscaling_config"]
        assert (scaling["min_replicas"], scaling["max_replicas"]) == (9, 9)


class TestTheToken:
    def test_may_be_in_a_file(self, tmp_path):
        path = tmp_path / "token"
        path.write_text("from a file\n".replace(" ", "-"))
        args = application(tmp_path, "--token-file", path)["args"]
        assert deployment_of(args).token == path.read_text().strip()
        assert "from-a-file" not in repr(deployment_of(args))

    @pytest.mark.parametrize("text", ["", " \n", None, b"\xff\xfe"])
    def test_file_has_to_have_one(self, tmp_path, text):
        path = tmp_path / "token"
        if text is not None:
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(InputError, match="token_file"):
            deployment_of({"token_file": str(path)})

    def test_is_needed(self):
        with pytest.raises(InputError, match="FIMSERVER_TOKEN"):
            deployment_of({})


@pytest.mark.parametrize(
    ("args", "error", "says"),
    [
        ({"allowed_hosts": ["a"]}, InputError, "allowed_hosts"),
        ({"settings": {"seeds": 1}}, InputError, "seeds"),
        ({"settings": {"token": "x"}}, InputError, "not written into settings"),
        ({"settings": {"ar_card": "no-such-card"}}, CardError, "no-such-card"),
        ({"allow_hosts": "gpu-box"}, InputError, "allow_hosts"),
        ({"allow_hosts": ["a b"]}, InputError, "not a host name"),
    ],
)
def test_wrong_arguments_of_a_file_are_one_clear_line(args, error, says, monkeypatch):
    monkeypatch.setenv("FIMSERVER_TOKEN", "secret")
    with pytest.raises(error, match=says) as caught:
        deployment_of(args)
    assert "\n" not in str(caught.value)


class TestExamples:
    def service(self):
        return yaml.safe_load((EXAMPLES / "rayservice.yaml").read_text("utf-8"))["spec"]

    def test_the_service_of_kubernetes_has_what_is_written_for_ray_elsewhere(self, tmp_path):
        served = yaml.safe_load(self.service()["serveConfigV2"])
        file = written(tmp_path)
        assert served["http_options"] == file["http_options"]
        (ours,), (usual,) = served["applications"], file["applications"]
        assert ours.keys() == usual.keys()
        assert ours["deployments"][0].keys() <= usual["deployments"][0].keys()
        assert (ours["import_path"], ours["route_prefix"]) == (usual["import_path"], usual["route_prefix"])

    def test_the_deployment_reads_the_arguments_of_the_service(self, tmp_path):
        secret = tmp_path / "token"
        secret.write_text("x")
        args = yaml.safe_load(self.service()["serveConfigV2"])["applications"][0]["args"]
        assert "fim.example.org" in deployment_of(args | {"token_file": str(secret)}).allowed_hosts

    def test_its_nodes_have_the_token_the_port_and_the_ray_that_is_installed(self):
        spec = self.service()
        served = yaml.safe_load(spec["serveConfigV2"])
        token = Path(served["applications"][0]["args"]["token_file"])
        cluster = spec["rayClusterConfig"]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            (container,) = group["template"]["spec"]["containers"]
            assert str(token.parent) in [mount["mountPath"] for mount in container["volumeMounts"]]
            ports = {port["name"]: port["containerPort"] for port in container["ports"]}
            assert ports["serve"] == served["http_options"]["port"]
        assert f"ray=={cluster['rayVersion']}\n" in (EXAMPLES.parents[1] / "constraints.txt").read_text()

    def test_the_image_and_the_file_say_how_proxies_ask_again(self, tmp_path):
        setting = f"{RAY_VARIABLE}={RAY_VALUE}"
        assert f"ENV {setting}\n" in (EXAMPLES / "Containerfile").read_text("utf-8")
        path = tmp_path / "fimserver.yaml"
        assert run("deploy", "init", path).exit_code == 0
        assert f"export {setting}\n" in path.read_text("utf-8")
        module, _, name = RAY_VALUE.partition(":")
        assert getattr(importlib.import_module(module), name)()

    def test_the_image_installs_what_is_in_the_repository(self):
        text = (EXAMPLES / "Containerfile").read_text("utf-8")
        for name in re.findall(r"/source/([\w.]+)", text):
            assert (EXAMPLES.parents[1] / name).exists(), name
        assert re.findall(r"ARG DEVICE=(\w+)", text) == ["cpu"]


class TestServeOnRay:
    def test_without_ray_says_how_to_install_it(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "ray", None)
        monkeypatch.delitem(sys.modules, "fimserver.deploy", raising=False)
        result = run("serve", "--ray")
        assert result.exit_code == 2
        assert result.stderr == "fimserver: --ray needs Ray: `pip install 'fimserver[ray]'`\n"

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            (("--queue", 3), "--queue needs --ray"),
            (("--ray", "--min-replicas", 3, "--max-replicas", 2), "more than"),
            (("--ray", "--listen", "everywhere"), "HOST:PORT"),
            (("--ray", "--ar-card", "no-such-card"), "no-such-card"),
            (("--ray", "--allow-host", "a b"), "not a host name"),
        ],
    )
    def test_wrong_options_are_said_before_anything_starts(self, options, says, monkeypatch):
        monkeypatch.setitem(sys.modules, "ray", None)
        result = run("serve", *options)
        assert result.exit_code == 2
        assert says in result.stderr

    def test_what_was_given_reaches_it(self, monkeypatch):
        given = []
        fake = types.SimpleNamespace(run_ray=lambda *all_of_it: given.append(all_of_it) or 0)
        monkeypatch.setitem(sys.modules, "fimserver.deploy", fake)
        monkeypatch.setenv("FIMSERVER_TOKEN", "secret")
        options = ("--min-replicas", 2, "--gpus", 1, "--allow-host", "gpu-box", "--listen", "0.0.0.0:8765")
        assert run("serve", "--ray", *options).exit_code == 0
        ((what, scale, address, _),) = given
        assert scale == Scale(min_replicas=2, max_replicas=4, gpus=1)
        assert (what.token, address) == ("secret", "0.0.0.0:8765")
        assert {"gpu-box", "localhost"} < what.allowed_hosts

    def test_the_command_line_starts_without_loading_ray(self):
        code = "import sys, fimserver.cli; sys.exit('ray' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
