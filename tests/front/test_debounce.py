"""How long to wait for the next key."""

import pytest

from fimserver.front.debounce import TypingRhythm


def typing(interval_s, keys=10):
    rhythm = TypingRhythm()
    for i in range(keys):
        rhythm.key(i * interval_s)
    return rhythm, (keys - 1) * interval_s


@pytest.mark.parametrize(
    ("interval_s", "waited_s", "low", "high"),
    [
        pytest.param(0.1, 0.0, 60, 120, id="a burst: most of the usual distance"),
        pytest.param(0.1, 0.2, 0, 0, id="the editor has waited already"),
        pytest.param(0.1, 0.05, 20, 70, id="the editor has waited a part"),
        pytest.param(1.0, 0.0, 0, 0, id="slow typing: nothing to wait for"),
    ],
)
def test_delay(interval_s, waited_s, low, high):
    rhythm, last = typing(interval_s)
    assert low <= rhythm.delay_ms(last + waited_s, 120) <= high


def test_the_limit_of_the_user_holds():
    rhythm, last = typing(0.1)
    assert rhythm.delay_ms(last, 20) == 20
    assert rhythm.delay_ms(last, 0) == 0


def test_without_keys_there_is_no_wait():
    assert TypingRhythm().delay_ms(0, 120) == 0
