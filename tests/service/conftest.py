"""A small finished run made in this process, without Ray."""

import pytest

from mucd_ray.data.formats.minari import load_dataset
from mucd_ray.service.runs.choices import Choices
from mucd_ray.service.runs.driver import certify, training_units
from mucd_ray.service.runs.session import Request, make_settings
from mucd_ray.service.runs.work import choose_states, train_and_evaluate
from mucd_ray.service.storage.store import RunStore

SECRET = b"s" * 32


@pytest.fixture(scope="session")
def make_run():
    """Trains 50 instances on a dataset, of which 40 were asked for, in blocks that overlap, and certifies them."""

    def make(dataset_id, folder):
        dataset = load_dataset(dataset_id)
        settings, _ = make_settings(Request(dataset=dataset_id, instances=40, steps=8, states=12, held_out=2, fraction=0.005), dataset, Choices())
        store = RunStore.create_or_open(folder / "run", settings, secret=SECRET)
        units = training_units(settings, dataset)
        states = store.write_states(choose_states(settings, SECRET, units, "cpu"))
        store.add_target(40)
        for instances in (range(20, 50), range(20), range(15, 25)):
            store.commit(train_and_evaluate(settings, SECRET, units, states, instances, "cpu"))
        store.write_json("baselines.json", {"reference": [1] * 12 if settings.actions else None})
        certify(store, Choices())
        return store

    return make
