"""Calibration of a device while it is idle."""

from fimserver.host.calibrate import IDLE_S, Background, calibrate, jobs, samples
from fimserver.host.fake import FakeEngines
from fimserver.host.jobs import run_job
from fimserver.host.routing.router import Router
from fimserver.host.scheduler import Scheduler


def texts():
    return FakeEngines(lambda _request, route: iter(["a"] if route == "dllm" else ["a", "b", "c"]))


def test_samples_are_holes_of_several_kinds_in_ordinary_code():
    found = samples()
    assert len({request.prefix for request in found}) == len(found) >= 9
    assert {request.sampling.stop for request in found} == {"line", "block", "none"}
    assert all(request.prefix.strip() and request.suffix.strip() for request in found)


def test_they_are_idle_work_of_documents_of_their_own():
    found = list(jobs())
    assert all(job.idle for job in found)
    assert len({job.key for job in found}) == len(found) == 2 * len(samples())
    assert {job.pin for job in jobs(("ar",))} == {"ar"}


def test_afterwards_every_route_has_a_price():
    router = Router()
    done = list(calibrate(texts(), router))
    assert len(done) == 2 * len(samples())
    assert router.costs.unsaved == len(done)
    assert router.costs.cost("ar/fake").pass_ms
    assert router.costs.cost("dllm/fake").pass_ms


def settled(scheduler):
    while any(scheduler.depth):
        pass


def test_a_host_asks_them_one_by_one_when_nobody_has_asked_for_a_while():
    engines = texts()
    scheduler = Scheduler(lambda: engines)
    background = Background(scheduler, ("dllm", "ar"))
    background.step(10 * IDLE_S)  # nothing is loaded yet
    assert not engines.asked
    scheduler.start()
    while scheduler.state is not None:
        pass
    background.step(IDLE_S / 2)
    assert not any(scheduler.depth)
    for _ in range(2 * len(samples()) + 5):
        background.step(IDLE_S)
        settled(scheduler)
    assert len(engines.asked) == 2 * len(samples())
    scheduler.close()


def test_a_server_elsewhere_is_not_asked():
    """It may want money; a host that starts and is left alone sends it nothing."""
    engines = texts()
    engines.elsewhere = frozenset({"ar"})
    scheduler = Scheduler(lambda: engines)
    scheduler.start()
    try:
        while scheduler.state is not None:
            pass
        background = Background(scheduler, ("dllm", "ar"))
        for _ in range(2 * len(samples()) + 5):
            background.step(IDLE_S)
            settled(scheduler)
    finally:
        scheduler.close()
    assert len(engines.asked) == len(samples())
    assert scheduler.router.costs.cost("dllm/fake").known
    assert not scheduler.router.costs.cost("ar/fake").known


def test_its_costs_are_learned_from_requests():
    engines, router = texts(), Router()
    engines.elsewhere = frozenset({"ar"})
    for job in jobs(("ar",)):
        job.idle = False
        list(run_job(engines, job, router))
    assert router.costs.cost("ar/fake").known


def test_what_is_known_from_earlier_is_not_asked_again():
    engines, router = texts(), Router()
    cost = router.costs.cost("ar/fake")
    cost.row_ms.append(1.0)
    cost.pass_ms.append(1.0)
    scheduler = Scheduler(lambda: engines, router=router)
    scheduler.start()
    while scheduler.state is not None:
        pass
    background = Background(scheduler, ("dllm", "ar"))
    for _ in range(2 * len(samples())):
        background.step(IDLE_S)
        settled(scheduler)
    assert len(engines.asked) == len(samples())
    scheduler.close()
