"""What a driver tells while it works, and `mucd watch`."""

import json
import time
from types import SimpleNamespace

import numpy as np
import pytest

from mucd_ray.cli import main
from mucd_ray.data.environments.cards import card_for
from mucd_ray.errors import MucdError
from mucd_ray.learn.learner import Learner
from mucd_ray.mechanism.gaussian.mechanism import Mechanism
from mucd_ray.service.runs.choices import Choices
from mucd_ray.service.runs.settings import RunSettings
from mucd_ray.service.storage.store import Block, RunStore
from mucd_ray.service.watching.live import GONE_AFTER, Live, drivers
from mucd_ray.service.watching.watch import watch_run
from mucd_ray.service.workers.actors import Certifier, Coordinator

SETTINGS = RunSettings(
    dataset="d", fingerprint="f", units=100, card=card_for("CartPole-v1"), actions=2, dimensions=0, action_bounds=None, declared_size=100, size_margin=None,
    mechanism=Mechanism(sample_rate=0.1, noise_multiplier=3.0, clip_norm=1.0, steps=5, normaliser=10.0), learner=Learner(learning_rate=1.0),
)
BOUNDS = {
    "instances": 160, "eta": 0.0001, "threat": "symmetric", "mean_return": 412.34,
    "keeps": {"0.9": {"radius": -1, "fraction": 0.0, "bound": 0.0}, "0.5": {"radius": 1, "fraction": 0.01, "bound": 208.69}},
}


@pytest.fixture
def store(tmp_path):
    return RunStore.create_or_open(tmp_path / "run", SETTINGS)


def test_drivers_see_each_other_until_they_are_gone(store):
    one, two = Live(store, 100), Live(store, 200)
    one.renew()
    assert two.others() == drivers(store) and one.others() == []
    two.renew()
    assert [other["wanted"] for other in one.others()] == [200]
    record = store.read_json(two.name)
    store.write_json(two.name, record | {"seen": time.time() - GONE_AFTER - 1})
    assert one.others() == []
    # A clock that is wrong by years, or a record that wants to stay.
    store.write_json(two.name, record | {"seen": 9e9})
    assert one.others() == []
    one.close()
    assert drivers(store) == []


@pytest.mark.parametrize("changes", [{"host": "\x1b[2Jx"}, {"host": 5}, {"process": "\x1b]0;x\x07"}, {"process": True}, {"process": None}, {"started": "x"}, {"wanted": [1]}, {"seen": "now"}, {"seen": None}])
def test_a_record_that_no_driver_wrote_is_named_wherever_it_is_read(store, capfd, changes):
    live = Live(store, 100)
    live.renew()
    live.publish(7, {"alive": 2, "wanted": 2}, {})
    record = {"host": "h", "process": 1, "started": time.time(), "seen": time.time(), "wanted": 5}
    store.write_json("drivers/planted.json", record)
    assert len(drivers(store)) == 2
    for values in (record | changes, {name: value for name, value in record.items() if name not in changes}, [], 5, {"seen": 9e9}):
        store.write_json("drivers/planted.json", values)
        for read in (live.others, lambda: drivers(store), lambda: watched(store)):
            with pytest.raises(MucdError, match=r"^\S+drivers/planted.json is not the record of a driver: delete it$"):
                read()
    assert main(["watch", str(store.path), "--once"]) == 2
    assert (told := capfd.readouterr().err).count("\n") == 1 and "planted.json" in told and "\x1b" not in told


def test_a_metric_that_ray_does_not_take_ends_nothing(local_ray, store, capsys):
    live = Live(store, 100)
    live.metrics.run = "ärger"
    live.publish(10, {"alive": 1}, {}, end=True)
    live.trained(10, 1.0)
    told = capsys.readouterr().err
    assert store.read_json("live.json")["instances_done"] == 10 and told.count("\n") == 1 and "Prometheus is not told of" in told and "training goes on" in told


def watched(store, **options):
    lines, on_terminal = [], options.pop("on_terminal", False)
    out = lambda text, control="": lines.append(control + text)
    out.on_terminal = on_terminal
    watch_run(SimpleNamespace(**{"run": str(store.path), "once": True, "json": False} | options), out)
    return "\n".join(lines)


def test_the_rate_and_what_is_shown(store, monkeypatch):
    with pytest.raises(MucdError, match="no news yet"):
        watched(store)
    live, now = Live(store, 400), [1000.0]
    monkeypatch.setattr("mucd_ray.service.watching.live.time.time", lambda: now[0])
    for done in (0, 50, 200):
        live.renew()
        live.publish(done, {"alive": 2, "wanted": 3}, {"trainer_died": 4})
        now[0] += 10.0
    news = json.loads(watched(store, json=True))
    assert news["instances_per_second"] == 10.0 and news["seconds_left"] == 20.0 and len(news["drivers"]) == 1
    text = watched(store)
    assert "200 of 400 instances  [###############---------------]  10/s, 20 s left" in text
    assert "2 at work, 3 wanted; failures: 4 trainer died" in text and "no bounds yet" in text
    live.bounds = BOUNDS
    live.publish(400, {"alive": 2, "wanted": 2}, {}, end=True)
    live.close()
    text = watched(store, once=False)
    assert "finished" in text and "no driver is at work" in text and "from the first 160 instances, valid at every look together: mean return 412.3" in text
    assert "keeps 90 % at no r" in text and "keeps 50 % up to r = 1 transition (1 %), expected return at least 208.69" in text


@pytest.mark.parametrize(("options", "shown"), [({}, 2), ({"json": True}, 2), ({"on_terminal": True}, 5)])
def test_what_has_not_changed_is_shown_again_only_in_its_place(store, monkeypatch, options, shown):
    """Four looks at a run that stands still, though its driver lives, and one at its end."""
    live, looks = Live(store, 400), [0]

    def pause(seconds):
        looks[0] += 1
        live.published = live.renewed = 0.0
        live.publish(7, {"alive": 2, "wanted": 2}, {}, end=looks[0] == 4)
        live.close() if looks[0] == 4 else live.renew()

    pause(0)
    looks[0] = 0
    monkeypatch.setattr("mucd_ray.service.watching.watch.time", SimpleNamespace(sleep=pause, time=time.time))
    text = watched(store, once=False, **options)
    assert looks[0] == 4 and text.count('"instances_done": 7' if options.get("json") else "7 of 400 instances") == shown
    assert ("\x1b" in text) == options.get("on_terminal", False)


def test_a_bar_is_as_long_as_any_whatever_the_news_say(store):
    live = Live(store, 400)
    for done in (-(10**12), 10**12):
        live.publish(done, {"alive": 2, "wanted": 2}, {})
        assert len(watched(store).splitlines()[0]) < 200


def test_watching_ends_with_the_certificate_of_a_driver_that_was_killed_before_it_said_so(store):
    live = Live(store, 400)
    live.publish(400, {"alive": 2, "wanted": 2}, {})
    store.write_json("certificate.json", {"results": {"instances": 400}})
    assert "400 of 400 instances" in watched(store, once=False)
    store.write_json("certificate.json", [])
    with pytest.raises(MucdError, match="certificate.json is not as this version writes it"):
        watched(store, once=False)


def test_looks_are_at_the_first_instances_whoever_stored_them_and_when(local_ray, store):
    """Which instances finish first depends on their returns: bounds from those would not hold."""

    def stored(first, count, value):
        nothing = {"actions": np.zeros((count, 200), np.int16), "levels": np.zeros((count, 200, 2), np.uint8), "parameters": {}}
        return [store.commit(Block(first=first, returns=np.full(count, value), **nothing))]

    store.write_states(np.zeros((200, 4), np.float32))
    coordinator, certifier = Coordinator.remote(str(store.path), 0), Certifier.remote(str(store.path), vars(Choices()))
    look = lambda: local_ray.get(certifier.look.remote(coordinator.returns.remote(100)))
    local_ray.get(coordinator.missing.remote(200, 32))
    local_ray.kill(coordinator, no_restart=False)
    coordinator.add.remote(stored(64, 100, 400.0))
    assert look() is None
    coordinator.add.remote(stored(0, 64, 100.0))
    assert (found := look())["instances"] == 100 and found["mean_return"] == pytest.approx(0.64 * 100 + 0.36 * 400)
    coordinator.add.remote(stored(164, 36, 0.0))
    assert look() == found


def test_news_that_cannot_be_written_do_not_stop_a_run(store, monkeypatch, capsys):
    live = Live(store, 400)

    def fail(*arguments):
        raise OSError(5, "the server is gone")

    monkeypatch.setattr(store.storage, "replace", fail)
    for _ in range(2):
        live.renewed = 0.0
        live.renew()
        live.publish(7, {}, {}, end=True)
    assert capsys.readouterr().err == f"mucd: {store.path} cannot be reached for news (the server is gone): training goes on\n"
