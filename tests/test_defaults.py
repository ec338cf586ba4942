"""Default models: what serves a route on machines with and without a GPU, and why."""

import pytest

from fimserver.cards import get_card, gguf_files
from fimserver.defaults import CPU_DEFAULTS, DEFAULTS, SLOWEST_MS, choose, default_card
from fimserver.front.config import Config
from fimserver.keystrokes import keep_ms, measured_ms
from fimserver.machine import Machine, free_ram_gib, this_machine
from fimserver.settings import Settings

SHIPPED = {"nano", "nano-draft"}
SMALL, LARGE = "qwen2.5-coder-0.5b-instruct", "qwen2.5-coder-1.5b-instruct"


def cpu(ram_gib=16.0):
    return Machine(0.0, ram_gib)


def gpu(gpu_gib):
    return Machine(gpu_gib, 16.0)


@pytest.fixture
def settings(tmp_path):
    return Settings(models_dir=tmp_path)


@pytest.fixture
def present(tmp_path):
    def put(*names):
        for name in names:
            folder = tmp_path / name
            folder.mkdir()
            for file in gguf_files(get_card(name)) or ("config.json", "model.safetensors"):
                (folder / file).write_bytes(b"")

    return put


@pytest.mark.parametrize("route", DEFAULTS)
def test_defaults_are_open_source_serve_their_route_and_fall_with_memory(route):
    needs = [needed for needed, _ in DEFAULTS[route]]
    assert needs == sorted(needs, reverse=True)
    assert needs[-1] == 0
    for needed, name in (*DEFAULTS[route], *((0, name) for name in CPU_DEFAULTS[route])):
        card = get_card(name)
        assert card.osi
        assert card.revision or name in SHIPPED
        assert route in card.routes
        assert needed == 0 or card.weights_gib * 1.1 <= needed


@pytest.mark.parametrize("machine", [cpu(), gpu(80)])
@pytest.mark.parametrize("route", DEFAULTS)
def test_without_downloads_the_default_is_nano(route, machine, settings):
    assert default_card(route, machine, settings).name == "nano"


def test_the_largest_present_default_that_fits_a_gpu_wins(present, settings):
    present("qwen2.5-coder-7b", "qwen2.5-coder-0.5b")
    assert default_card("ar", gpu(24), settings).name == "qwen2.5-coder-7b"
    assert default_card("ar", gpu(8), settings).name == "qwen2.5-coder-0.5b"
    assert default_card("ar", gpu(1), settings).name == "nano"


def test_a_gpu_uses_the_gguf_coder_where_it_is_all_there_is(present, settings):
    present(LARGE)
    assert default_card("ar", gpu(8), settings).name == LARGE


def test_any_cpu_with_room_takes_the_small_coder(present, settings):
    present(SMALL)
    assert default_card("ar", cpu(), settings).name == SMALL
    assert default_card("ar", cpu(3), settings).name == "nano"
    assert "needs 4 GiB" in choose("ar", cpu(3), settings).why


def test_the_small_coder_serves_both_routes_from_one_copy(present, settings):
    present(SMALL, LARGE)
    keep_ms("cpu", SMALL, 300)
    assert default_card("dllm", cpu(), settings).name == SMALL
    assert default_card("dllm", cpu(3), settings).name == "nano"
    assert default_card("dllm", cpu(3), settings, shared=[SMALL]).name == SMALL
    keep_ms("cpu", SMALL, 2100)
    assert default_card("dllm", cpu(), settings, shared=[SMALL]).name == "nano"


def test_the_large_coder_is_taken_on_a_cpu_only_when_it_was_measured_and_is_quick(present, settings):
    present(SMALL, LARGE)
    assert default_card("ar", cpu(), settings).name == SMALL
    assert (
        "is used once its speed here is measured: fimserver doctor --calibrate"
        in choose("ar", cpu(), settings).why
    )
    keep_ms("cpu", LARGE, 600)
    assert default_card("ar", cpu(), settings).name == LARGE
    assert "600 ms a keystroke" in choose("ar", cpu(), settings).why
    keep_ms("cpu", LARGE, 1400)
    assert default_card("ar", cpu(), settings).name == SMALL
    assert "takes 1400 ms a keystroke here, 1000 are allowed" in choose("ar", cpu(), settings).why


def test_the_small_coder_only_has_to_answer_within_the_deadline_of_editors(present, settings):
    present(SMALL)
    keep_ms("cpu", SMALL, 1900)
    assert default_card("ar", cpu(), settings).name == SMALL
    keep_ms("cpu", SMALL, 2100)
    assert default_card("ar", cpu(), settings).name == "nano"
    assert Config().deadline_ms == SLOWEST_MS


def test_a_deadline_that_is_set_is_the_limit(present, settings):
    present(SMALL)
    keep_ms("cpu", SMALL, 300)
    assert default_card("ar", cpu(), settings).name == SMALL
    assert default_card("ar", cpu(), settings.model_copy(update={"deadline_ms": 250.0})).name == "nano"


def test_what_was_measured_on_a_cpu_says_nothing_of_a_gpu():
    keep_ms("cpu", SMALL, 300)
    keep_ms("cpu", LARGE, 900)
    assert measured_ms("cpu") == {SMALL: 300, LARGE: 900}
    assert measured_ms("cuda") == {}


def test_the_best_choice_is_known_before_it_is_here(settings):
    assert choose("ar", cpu(), settings, wanted=True).card.name == SMALL
    assert choose("ar", gpu(24), settings, wanted=True).card.name == "qwen2.5-coder-7b"
    assert choose("dllm", gpu(24), settings, wanted=True).card.name == "dreamon-7b"


def test_free_memory_is_that_of_the_container(tmp_path):
    proc, group = tmp_path / "meminfo", tmp_path / "cgroup"
    group.mkdir()
    proc.write_text("MemTotal: 16 kB\nMemAvailable:    8388608 kB\n")
    assert free_ram_gib(proc, group) == 8
    (group / "memory.max").write_text("max\n")
    assert free_ram_gib(proc, group) == 8
    (group / "memory.max").write_text(f"{3 * 2**30}\n")
    (group / "memory.current").write_text(f"{2**30}\n")
    assert free_ram_gib(proc, group) == 2


def test_this_machine_has_memory():
    assert this_machine().ram_gib > 0


def test_a_full_gpu_is_still_a_gpu():
    assert gpu(10).less(12).gpu_gib > 0
    assert cpu(10).less(4).ram_gib == 6
