"""Cells of a study: one defence, trained and certified on one dataset in a folder of its own; what `mucd attack` and `mucd compare` share."""

import contextlib
import io
import json
import tempfile
from argparse import Namespace
from dataclasses import dataclass, replace

import numpy as np

from mucd_ray.data.dataset import OfflineDataset
from mucd_ray.errors import MucdError
from mucd_ray.mechanism.neighbours import Neighbours
from mucd_ray.service.runs.choices import Choices
from mucd_ray.service.runs.commands import asked, resources_of
from mucd_ray.service.runs.driver import certify, check_instances
from mucd_ray.service.runs.rules import check_window
from mucd_ray.service.runs.session import execute, make_settings
from mucd_ray.service.runs.settings import RunSettings
from mucd_ray.service.storage.store import RunStore


@dataclass(frozen=True, kw_only=True)
class Defence:
    """One defence of a study.

    Attributes:
        options: of `mucd run`, with which its policies are trained, and `rule` and `window` of `mucd certify`, None where they do not apply.
        trained: the name of the folder with its policies, its own or one that vote rules share.
    """

    name: str
    options: Namespace
    trained: str


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Where a defence lies: the run folder, and the folder of its certificate, which is another one for a vote rule."""

    run: str
    certificate: str

    def read(self) -> dict:
        """Its certificate. Raises MucdError where it has none."""
        found = RunStore(self.certificate).certificate()
        if found is None:
            raise MucdError(f"{self.certificate} has no certificate.json: delete the folder, and run the same command again")
        return found


def settings_of(defence: Defence, dataset: OfflineDataset) -> tuple[RunSettings, Choices]:
    """With what a defence would be trained and certified. Raises MucdError where it cannot be."""
    try:
        # The run itself says on standard error what there is to say.
        with contextlib.redirect_stderr(io.StringIO()):
            request, _, choices = asked(defence.options, dataset)
            settings, _ = make_settings(request, dataset, replace(choices, policy="instance"))
        if settings.mechanism.kind != Neighbours.kind:
            check_instances(settings, choices, request.instances)
        check_window(settings, choices)
    except MucdError as error:
        raise MucdError(f"defence {defence.name}: {error}") from None
    return settings, choices


def make_cell(cell: Cell, defence: Defence, dataset: OfflineDataset, states: np.ndarray | None) -> None:
    """Train and certify as `mucd run` does, with a secret of its own; at these states [S, *shape], if they are given. A vote rule's policies are trained only if they are not there."""
    options = defence.options
    with tempfile.NamedTemporaryFile(suffix=".npy") as file:
        if states is not None:
            np.save(file, states, allow_pickle=False)
            file.flush()
            options = Namespace(**vars(options) | {"states_file": file.name, "states": None})
        request, _, choices = asked(options, dataset)
        if choices.rule is None:
            execute(request, cell.run, choices=choices, resources=resources_of(options), dataset=dataset)
            return
        if RunStore(cell.run).certificate() is None:
            execute(request, cell.run, choices=replace(choices, rule=None, window=None), resources=resources_of(options), dataset=dataset)
        # What is said of the voted policy stands in the certificate of the run, and would take room here.
        certify(RunStore.open(cell.run), replace(choices, policy=Choices.policy), into=RunStore(cell.certificate))


def check_same(store: RunStore, file: str, wanted: dict, what: str) -> None:
    """Write `wanted` where nothing is yet. Raise MucdError where the folder holds something else than a study with the same."""
    found = store.read_json(file)
    if found is None and store.storage.names():
        raise MucdError(f"{store.location} is not empty and holds no {what}: choose a new folder with --storage")
    wanted = json.loads(json.dumps(wanted))
    if found is not None and found != wanted:
        different = sorted(key for key in wanted if not isinstance(found, dict) or found.get(key) != wanted[key]) or ["keys"]
        raise MucdError(f"{store.location} holds {what} with another {', '.join(different)}: use the same, or another --storage")
    store.write_json(file, wanted)
