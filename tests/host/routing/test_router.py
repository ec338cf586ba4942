"""Which route serves a request, and why."""

import random
from typing import get_args

import pytest

from fimserver.host.routing.latency import LatencyModel, LatencySample
from fimserver.host.routing.policies import EXPLORED, POLICIES, PolicyInput, RouteChoice, RouteEstimate
from fimserver.host.routing.router import NO_DEADLINE_MS, KeepCounts, Router, RoutingRequest, cost_name, fit
from fimserver.host.routing.stand_in import needed_routes
from fimserver.reasons import Reason
from fimserver.settings import Settings
from fimserver.types import ROUTES, Features, Request, Sampling, other

MODELS = {"dllm": "d", "ar": "a"}
INSIDE, FRESH = Request("f(", ")\n"), Request("def f():\n    ", "\n")


def features(**changes):
    known = {
        "language": "python", "place": "code", "block_opened": False, "in_arguments": False, "statement_end": False,
        "empty_body": False, "blank_line": False, "right_text": False, "indentation": 4, "bracket_debt": 0,
        "mid_word": False, "expected_lines": 1,
    }  # fmt: skip
    return Features(**known | changes)


def facts(dllm=None, ar=None, **changes):
    side = {"ms": 100.0, "in_time": 1.0, "keep": 0.5, "answers": 1e6}
    sides = {"dllm": RouteEstimate(**side | (dllm or {})), "ar": RouteEstimate(**side | (ar or {}))}
    return PolicyInput(
        **{"lexemes": 20.0, "chars": 80.0, "sides": sides, "rate": 0.1, "random": random.Random(1)} | changes
    )


def asked(request=INSIDE, pin="auto", left_ms=NO_DEADLINE_MS, models=MODELS, rows=None, broken=""):
    return RoutingRequest(
        request, pin, left_ms, models, dict.fromkeys(models, 128) if rows is None else rows, broken
    )


def costs(dllm_ms=2.0, ar_ms=2.0):
    latency = LatencyModel()
    for name, ms in (("dllm/d", dllm_ms), ("ar/a", ar_ms)):
        for tokens in (5, 15, 30, 60, 100):
            for _ in range(5):
                latency.learn(name, LatencySample(64, 6.4, 10, tokens, 6.4 + 10 * ms, Reason.END))
    return latency


class TestPolicies:
    @pytest.mark.parametrize(
        ("policy", "given", "route"),
        [
            ("always_ar", facts(ar={"ms": 9e9, "keep": 0.0}), "ar"),
            ("length", facts(lexemes=16), "ar"),
            ("length", facts(lexemes=17), "dllm"),
            ("latency", facts(ar={"ms": 99}), "ar"),
            ("latency", facts(dllm={"ms": 99}), "dllm"),
            ("latency", facts(ar={"ms": 10, "in_time": 0.4}), "dllm"),
            ("latency", facts(ar={"ms": 10, "in_time": 0.4}, dllm={"in_time": 0.0}), "ar"),
            ("expected_value", facts(ar={"keep": 0.6}), "ar"),
            ("expected_value", facts(dllm={"keep": 0.6}), "dllm"),
            (
                "expected_value",
                facts(dllm={"keep": 0.6}, ar={"ms": 10}),
                "ar",
            ),  # 8 characters more, 90 ms more
            (
                "expected_value",
                facts(dllm={"keep": 0.6}, ar={"ms": 10}, rate=0.01),
                "dllm",
            ),  # where time is cheap
            ("expected_value", facts(dllm={"keep": 0.9, "in_time": 0.1}), "ar"),
            ("bandit", facts(dllm={"keep": 0.9}), "dllm"),
            ("bandit", facts(ar={"keep": 0.9}), "ar"),
        ],
    )
    def test_each_has_its_rule(self, policy, given, route):
        assert POLICIES[policy](given).route == route

    def test_the_settings_name_the_same_policies(self):
        assert set(get_args(Settings.model_fields["policy"].annotation)) == set(POLICIES)

    def test_the_bandit_says_how_likely_its_choice_was_and_always_explores(self):
        sure = facts(dllm={"keep": 0.9})
        drawn = [POLICIES["bandit"](sure) for _ in range(4000)]
        share = sum(choice.route == "ar" for choice in drawn) / len(drawn)
        assert {round(choice.propensity, 9) for choice in drawn if choice.route == "ar"} == {EXPLORED / 2}
        assert share == pytest.approx(EXPLORED / 2, abs=0.015)

    def test_the_bandit_tries_what_it_does_not_know(self):
        unsure = facts(dllm={"keep": 0.45, "answers": 2.0}, ar={"keep": 0.5, "answers": 2.0})
        drawn = [POLICIES["bandit"](unsure) for _ in range(400)]
        assert 0.25 < sum(choice.route == "dllm" for choice in drawn) / 400 < 0.7
        # Inverse propensities undo the choice: each route's weights add up to all that was drawn.
        for route in ("dllm", "ar"):
            assert sum(1 / c.propensity for c in drawn if c.route == route) == pytest.approx(400, rel=0.2)


class TestDecisions:
    @pytest.mark.parametrize("pin", ["dllm", "ar"])
    def test_what_was_asked_for_is_not_weighed(self, pin):
        decision = Router(costs=costs()).decide(asked(pin=pin, models={pin: MODELS[pin]}))
        assert (decision.route, decision.why, decision.policy) == (pin, "asked for", "")
        assert decision.predicted_ms[pin] > 0

    def test_before_anything_was_measured_the_length_decides(self):
        router = Router()
        assert router.decide(asked(INSIDE)).route == "ar"
        assert router.decide(asked(FRESH)).route == "dllm"
        assert "latency is not measured yet" in router.decide(asked(FRESH)).why

    def test_the_cheaper_route_wins_where_both_keep_as_much(self):
        assert Router(costs=costs(dllm_ms=20.0)).decide(asked(FRESH)).route == "ar"
        assert Router(costs=costs(ar_ms=20.0)).decide(asked(INSIDE)).route == "dllm"

    def test_rows_that_are_not_in_the_cache_have_their_price(self):
        router = Router("latency", costs())
        assert router.decide(asked(rows={"dllm": 2000, "ar": 0})).route == "ar"
        assert router.decide(asked(rows={"dllm": 0, "ar": 2000})).route == "dllm"

    def test_a_deadline_that_a_route_misses_takes_its_value(self):
        router = Router(costs=costs(dllm_ms=3.0, ar_ms=30.0))
        assert router.decide(asked(FRESH, left_ms=100.0)).route == "dllm"

    def test_what_was_kept_here_outweighs_what_was_published(self):
        def kept(route, _model):
            return [KeepCounts(5000.0, 4500.0 if route == "dllm" else 100.0)] * 5

        decision = Router(costs=costs(), kept=kept).decide(asked(INSIDE))
        assert decision.route == "dllm"
        assert decision.keep["ar"] < 0.05 < decision.keep["dllm"] <= 1

    def test_the_reason_has_length_times_and_keep_rates_and_quotes_nothing(self):
        decision = Router(costs=costs()).decide(asked(Request("canary", "canary\n")))
        assert "canary" not in decision.why
        for part in ("lexemes", "dllm 33 ms", "ar 33 ms", "keeps 9", "expected_value"):
            assert part in decision.why
        assert decision.policy == "expected_value"
        assert set(decision.predicted_ms) == set(decision.keep) == set(MODELS)

    def test_when_one_route_cannot_run_the_other_serves(self):
        decision = Router(costs=costs()).decide(asked(FRESH, models={"ar": "a"}, broken="no room"))
        assert decision.route == "ar"
        assert "dllm cannot run here: no room" in decision.why

    def test_a_route_that_cannot_run_rests_for_a_while(self, monkeypatch):
        router, now = Router(), [1000.0]
        monkeypatch.setattr("time.monotonic", lambda: now[0])
        router.trip("dllm", "no room")
        assert router.tripped("dllm") == "no room"
        assert not router.tripped("ar")
        now[0] += 301
        assert not router.tripped("dllm")

    def test_the_seed_decides_what_is_drawn(self):
        def routes(seed):
            router = Router("bandit", costs(), seed=seed)
            return [router.decide(asked()).route for _ in range(200)]

        assert routes(1) == routes(1) != routes(2)

    def test_learning_makes_the_next_prediction(self):
        router = Router(costs=costs())
        before = router.decide(asked(INSIDE)).predicted_ms["ar"]
        decision = router.decide(asked(INSIDE, pin="ar", models={"ar": "a"}))
        for _ in range(30):
            router.learn(decision, "a", LatencySample(64, 12.8, 10, 5, 12.8 + 40.0, Reason.END))
        assert router.decide(asked(INSIDE)).predicted_ms["ar"] > 1.5 * before
        assert router.costs.cost(cost_name("ar", "a")).error()["p50"] > 1.5


class TestLimits:
    def test_nothing_is_changed_where_nobody_has_looked(self):
        assert fit(INSIDE) is INSIDE

    def test_a_canvas_starts_as_long_as_is_expected(self):
        request = Request(
            "def f():\n    ", "\n", features=features(block_opened=True, empty_body=True, blank_line=True)
        )
        inside = Request("f(", ")\n", features=features(in_arguments=True, right_text=True))
        assert fit(request).canvas_tokens > fit(inside).canvas_tokens > 0

    def test_a_middle_before_other_text_is_one_line(self):
        inside = Request(
            "f(",
            ")\n",
            features=features(in_arguments=True, right_text=True),
            sampling=Sampling(max_tokens=1024),
        )
        assert fit(inside).sampling.stop == "line"
        assert fit(inside).sampling.max_tokens < 1024

    @pytest.mark.parametrize("stop", ["line", "block", "none"])
    def test_a_stop_rule_that_was_asked_for_stands(self, stop):
        request = Request("f(", ")\n", features=features(right_text=True), sampling=Sampling(stop=stop))
        assert fit(request).sampling.stop == stop


def test_there_are_two_routes():
    assert (other("ar"), other("dllm")) == ("dllm", "ar")


class TestModelsOfOtherSizes:
    CODER = {"ar": "qwen2.5-coder-0.5b-instruct", "dllm": "nano"}
    CANVAS = {"ar": "nano", "dllm": "dreamon-7b"}

    @pytest.mark.parametrize("policy", ["expected_value", "bandit"])
    @pytest.mark.parametrize(("models", "route"), [(CODER, "ar"), (CANVAS, "dllm")])
    def test_a_far_smaller_model_is_never_chosen_however_quick_it_is(self, policy, models, route):
        latency = LatencyModel()
        for each, name in models.items():
            for tokens in (5, 15, 30, 60, 100):
                ms = 100.0 if each == route else 1.0
                latency.learn(
                    cost_name(each, name), LatencySample(64, 6.4, 10, tokens, 6.4 + 10 * ms, Reason.END)
                )
        router = Router(policy, latency)
        for request in (INSIDE, FRESH):
            decision = router.decide(asked(request, models=models))
            assert decision.route == route
            assert decision.why == f"nano on {other(route)} is far smaller"

    @pytest.mark.parametrize(("models", "route"), [(CODER, "ar"), (CANVAS, "dllm")])
    def test_its_engine_is_needed_only_where_it_may_answer(self, models, route):
        assert needed_routes("auto", "expected_value", models) == (route,)
        assert needed_routes("auto", "always_ar", models) == ROUTES
        assert needed_routes(other(route), "expected_value", models) == (other(route),)
        assert needed_routes("auto", "bandit", {"ar": "nano", "dllm": "nano"}) == ROUTES

    @pytest.mark.parametrize("ar", ["qwen2.5-coder-0.5b-instruct", "qwen2.5-coder-1.5b-instruct"])
    def test_a_canvas_that_writes_its_ar_text_is_one_beside_a_coder_no_smaller(self, ar):
        models = {"ar": ar, "dllm": "qwen2.5-coder-0.5b-instruct"}
        decision = Router().decide(asked(models=models))
        assert decision.route == "ar"
        assert "writes the same on both routes" in decision.why
        assert needed_routes("auto", "expected_value", models) == ("ar",)
        assert needed_routes("dllm", "expected_value", models) == ("dllm",)
        assert Router().decide(asked(pin="dllm", models=models)).route == "dllm"

    def test_it_still_answers_when_it_is_asked_for_or_alone(self):
        assert Router().decide(asked(pin="dllm", models=self.CODER)).route == "dllm"
        assert Router().decide(asked(models={"dllm": "nano"}, broken="no memory")).route == "dllm"

    @pytest.mark.parametrize(
        "models", [MODELS, {"ar": "nano", "dllm": "nano"}, {"ar": "qwen2.5-coder-7b", "dllm": "dreamon-7b"}]
    )
    def test_models_alike_or_unknown_are_weighed(self, models):
        assert "keeps" in Router().decide(asked(models=models)).why

    def test_a_fixed_policy_stays_fixed(self):
        assert Router("always_ar").decide(asked(models=self.CANVAS)).route == "ar"


def test_a_toy_policy_from_outside_decides(monkeypatch):
    monkeypatch.setitem(
        POLICIES, "toy", lambda given: RouteChoice("dllm" if given.lexemes > 0 else "ar", 0.5)
    )
    decision = Router("toy", costs()).decide(asked())
    assert (decision.route, decision.policy, decision.propensity) == ("dllm", "toy", 0.5)
