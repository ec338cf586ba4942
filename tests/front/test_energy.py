"""Power state from files on Linux and from pmset on macOS; it is read in the background."""

import subprocess

import pytest

from fimserver.front.energy import READ_EVERY_S, Energy, from_pmset, from_sysfs


def supplies(root, **found):
    """Power supplies as Linux shows them."""
    for name, facts in found.items():
        folder = root / "class/power_supply" / name
        folder.mkdir(parents=True)
        for fact, value in facts.items():
            (folder / fact).write_text(value + "\n")


AC_ON, AC_OFF = {"type": "Mains", "online": "1"}, {"type": "Mains", "online": "0"}
FULL, DRAINING = {"type": "Battery", "status": "Full"}, {"type": "Battery", "status": "Discharging"}
MOUSE = DRAINING | {"scope": "Device"}


@pytest.mark.parametrize(
    ("found", "power"),
    [
        ({}, "mains"),
        ({"AC": AC_ON}, "mains"),
        ({"AC": AC_ON, "BAT0": FULL}, "mains"),
        ({"AC": AC_OFF, "BAT0": DRAINING}, "battery"),
        ({"BAT0": FULL, "BAT1": DRAINING}, "battery"),
        ({"hidpp_battery_0": MOUSE}, "mains"),
        ({"usb": {"type": "USB", "online": "1"}, "BAT0": DRAINING}, "mains"),
        ({"AC": {}, "BAT0": {"type": "Battery"}}, "mains"),
    ],
)
def test_linux(found, power, tmp_path):
    supplies(tmp_path, **found)
    assert from_sysfs(tmp_path) == power


@pytest.mark.parametrize(
    ("profile", "power"), [("low-power", "saving"), ("quiet", "saving"), ("balanced", "mains")]
)
def test_the_platform_profile_of_linux(profile, power, tmp_path):
    supplies(tmp_path, AC=AC_ON)
    (tmp_path / "firmware/acpi").mkdir(parents=True)
    (tmp_path / "firmware/acpi/platform_profile").write_text(profile)
    assert from_sysfs(tmp_path) == power


@pytest.mark.parametrize(
    ("batt", "settings", "power"),
    [
        (
            "Now drawing from 'AC Power'\n -InternalBattery-0 100%; charged",
            " sleep 1\n lowpowermode 0\n",
            "mains",
        ),
        (
            "Now drawing from 'Battery Power'\n -InternalBattery-0 80%; discharging",
            " lowpowermode 0\n",
            "battery",
        ),
        ("Now drawing from 'Battery Power'\n", " lowpowermode         1\n", "saving"),
        ("Now drawing from 'AC Power'\n", " lowpowermode         1\n", "saving"),
        ("", "", "mains"),
    ],
)
def test_macos(batt, settings, power):
    assert from_pmset(batt, settings) == power


def test_the_state_is_read_once_in_a_while_and_the_last_one_holds():
    now, states, reads = [0.0], ["battery", "mains"], []

    def read():
        reads.append(now[0])
        return states[len(reads) - 1]

    energy = Energy(read, lambda: now[0], lambda work: work())
    assert [energy.power, energy.power] == ["battery", "battery"]
    now[0] = READ_EVERY_S
    assert energy.power == "mains"
    assert reads == [0.0, READ_EVERY_S]


@pytest.mark.parametrize("error", [OSError("gone"), ValueError("odd"), subprocess.TimeoutExpired("pmset", 2)])
def test_a_system_that_does_not_say_runs_on_mains(error):
    def read():
        raise error

    assert Energy(read, run=lambda work: work()).power == "mains"
