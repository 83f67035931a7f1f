"""The pool on real Ray actors that raise, die, hang, are stopped, or do not start."""

import os
import signal
import subprocess
import sys
import time

import pytest
import ray

from mucd_ray.errors import MucdError
from mucd_ray.service.workers.actors import WATCH, Watched
from mucd_ray.service.workers.pool import Call, Pool


@pytest.fixture(scope="module")
def worker(local_ray):
    """An actor class whose calls do what they are told; `folder` remembers what was done before."""

    class Worker(Watched):
        def __init__(self, refuse=None, marker=None):
            self.ticks, self.refuse, self.marker = 0, refuse, marker

        def prepare(self):
            if self.refuse:
                raise RuntimeError(self.refuse)
            if self.marker:
                self.once(self.marker, "SIGSTOP")

        @ray.method(concurrency_group="watch")
        def progress(self):
            return self.ticks

        def double(self, number):
            self.ticks += 1
            return 2 * number

        def once(self, marker, what):
            """The first time, die, stop or hang; later go on."""
            if not os.path.exists(marker):
                open(marker, "w").close()
                if what == "raise":
                    raise OSError("the network is gone")
                if what == "hang":
                    time.sleep(600)
                os.kill(os.getpid(), getattr(signal, what))
                time.sleep(600)
            return what

        def busy(self, seconds):
            for _ in range(int(10 * seconds)):
                time.sleep(0.1)
                self.ticks += 1
            return "done"

        def silent(self, seconds):
            time.sleep(seconds)
            return "done"

        def die_if_large(self, block):
            if len(block) > 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return list(block)

        def fail(self, text):
            raise MucdError(text) if text.startswith("mucd") else ValueError(text)

    return local_ray.remote(max_restarts=0, max_task_retries=0, concurrency_groups=WATCH)(Worker)


def pool_of(worker, slots=2, lease=300.0, **options):
    return Pool(lambda: worker.options(num_cpus=0, **options).remote(), lambda: slots, lease)


def results(pool, calls, **options):
    try:
        return [result[:2] for result in pool.run(calls, **options) if result is not None]
    finally:
        pool.close()


def test_every_call_is_made_once_by_as_many_actors_as_there_are_slots(worker):
    pool = pool_of(worker, slots=3)
    calls = [Call("double", (number,)) for number in range(20)]
    assert sorted(value for _, value in results(pool, calls)) == list(range(0, 40, 2))
    assert pool.failures == {} and pool.workers == []


@pytest.mark.parametrize("what, failure", [("SIGKILL", "trainer_died"), ("raise", "training_failed"), ("SIGSTOP", "lease_expired"), ("hang", "lease_expired")])
def test_what_fails_is_done_again(worker, tmp_path, what, failure):
    """A process that is stopped answers nobody, one that hangs answers but makes no progress: both are noticed, and gone afterwards."""
    pool = pool_of(worker, slots=1, lease=3.0)
    assert results(pool, [Call("once", (str(tmp_path / "marker"), what)), Call("double", (4,))]) == [(Call("once", (str(tmp_path / "marker"), what)), what), (Call("double", (4,)), 8)]
    assert pool.failures == {failure: 1}


def test_a_call_longer_than_the_lease_goes_on_while_it_makes_progress(worker):
    pool = pool_of(worker, slots=1, lease=2.5)
    assert [value for _, value in results(pool, [Call("busy", (5,))])] == ["done"]
    assert pool.failures == {}


@pytest.mark.slow
def test_a_call_whose_lease_has_expired_gets_a_longer_one(worker):
    """On a busy machine a lease that is too short is no reason to stop: here nothing shows progress for four times the lease."""
    pool = pool_of(worker, slots=1, lease=3.0)
    assert [value for _, value in results(pool, [Call("silent", (12.0,))])] == ["done"]
    assert 1 <= pool.failures["lease_expired"] <= 3


def test_a_block_that_kills_its_actor_is_halved(worker):
    def halve(call):
        (block,) = call.arguments
        return [Call("die_if_large", (block[: len(block) // 2],)), Call("die_if_large", (block[len(block) // 2 :],))]

    pool = pool_of(worker, slots=1)
    found = results(pool, [Call("die_if_large", (range(5),))], halve=halve)
    assert sorted(sum((value for _, value in found), [])) == [0, 1, 2, 3, 4] and pool.failures["trainer_died"] == 4


def test_what_others_have_done_meanwhile_is_left_out(worker):
    done = []
    pool = pool_of(worker, slots=1)
    found = []
    for result in pool.run([Call("double", (number,)) for number in range(6)], is_done=lambda call: call.arguments[0] in done):
        if result is not None:
            found.append(result[1])
            done += [3, 5]
    pool.close()
    assert found == [0, 2, 4, 8]


@pytest.mark.parametrize("text, message", [("mucd says so", "^mucd says so$"), ("no such library: libfoo", "training failed 3 times at fail.*libfoo")])
def test_what_always_fails_stops_with_the_reason(worker, text, message):
    with pytest.raises(MucdError, match=message):
        results(pool_of(worker), [Call("fail", (text,))])


def test_actors_that_do_not_start_stop_with_the_reason(worker, capsys):
    pool = Pool(lambda: worker.options(num_cpus=0).remote("no module named mucd_ray"), lambda: 2, 300.0)
    with pytest.raises(MucdError, match="no trainer starts; 3 in a row failed.*no module named mucd_ray"):
        results(pool, [Call("double", (1,))])
    assert "did not start, and is tried again" in capsys.readouterr().err


def test_one_that_is_stuck_before_it_is_ready_is_replaced(worker, tmp_path):
    pool = Pool(lambda: worker.options(num_cpus=0).remote(None, str(tmp_path / "marker")), lambda: 1, 3.0)
    pool.start_patience = 5.0
    assert results(pool, [Call("double", (4,))]) == [(Call("double", (4,)), 8)]
    assert pool.failures == {"start_failed": 1}


def test_one_that_is_stopped_while_it_gets_ready_is_replaced_as_soon_as_it_does_not_answer(worker, tmp_path):
    """Long before a start that takes long, such as fetching large data, is given up."""
    pool = Pool(lambda: worker.options(num_cpus=0).remote(None, str(tmp_path / "marker")), lambda: 1, 300.0)
    pool.answer_patience = 4.0
    assert results(pool, [Call("double", (4,))]) == [(Call("double", (4,)), 8)]
    assert pool.failures == {"start_failed": 1} and pool.answer_patience == 8.0 and pool.start_patience > 300


def test_actors_tell_where_they_are_before_they_import_what_takes_long():
    """Ray cannot tell a process that is stopped until then from one that waits for room."""
    code = "import sys, mucd_ray.service.workers.actors; print([name for name in ('torch', 'scipy', 'gymnasium', 'minari', 'mucd_ray.learn') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_a_wait_for_room_is_said(worker, capsys, monkeypatch):
    monkeypatch.setattr("mucd_ray.service.workers.pool.SILENCE", 1.0)
    pool, began = pool_of(worker, slots=1, resources={"nowhere": 1}), time.monotonic()
    list(pool.run([Call("double", (1,))], is_done=lambda call: time.monotonic() - began > 4.0))
    pool.close()
    assert capsys.readouterr().err.count("no trainer has found room for 1 seconds (free now: ") == 1


@pytest.mark.parametrize("what, lease, failure", [("SIGKILL", 300.0, "trainer_died"), pytest.param("SIGSTOP", 5.0, "lease_expired", marks=pytest.mark.slow)])
def test_a_node_that_goes_away_with_idle_actors_costs_one_call(worker, monkeypatch, what, lease, failure):
    """Idle ones get no call before they have answered, and those that never do are replaced."""
    monkeypatch.setattr("mucd_ray.service.workers.pool.IDLE_PATIENCE", 3.0)
    pool, call, harmed = pool_of(worker, slots=4, lease=lease), Call("busy", (3.0,)), []
    pool.upcoming = 4
    for _ in pool.run([call]):
        if not harmed and pool.alive == 4:
            pool.upcoming, harmed = 0, [worker.place[1] for worker in pool.workers]
            for process in harmed:
                os.kill(process, getattr(signal, what))
    pool.close()
    assert harmed and pool.failures == {failure: 1}


def test_actors_without_room_wait_and_others_do_the_work(worker):
    """Pending actors are what an autoscaler sees; no call waits for one of them."""
    pool = pool_of(worker, slots=2, resources={"node:__internal_head__": 0.6})
    assert sorted(value for _, value in results(pool, [Call("double", (number,)) for number in range(5)])) == [0, 2, 4, 6, 8]


def test_without_room_what_others_do_is_enough(worker):
    pool, done = pool_of(worker, resources={"nowhere": 1}), []
    for result in pool.run([Call("double", (number,)) for number in range(3)], is_done=lambda call: call.arguments[0] in done):
        assert result is None
        done.append(len(done))
    pool.close()
    assert done[:3] == [0, 1, 2] and pool.alive == 0 and pool.failures == {}


def test_slots_that_come_later_are_used(worker):
    slots, most = [1], 0
    pool = Pool(lambda: worker.options(num_cpus=0).remote(), lambda: slots[0], 300.0)
    for result in pool.run([Call("busy", (1.0,)) for _ in range(12)]):
        slots[0] = 3
        most = max(most, pool.alive)
    pool.close()
    assert most == 3
