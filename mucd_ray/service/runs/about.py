"""What a certificate says about its run beside evidence and results: assumptions, and where the evidence comes from."""

import hashlib
import json
from dataclasses import asdict
from importlib.metadata import version

from mucd_ray.certify.confidence.looks import looks_up_to
from mucd_ray.certify.rounding import exactly
from mucd_ray.service.runs.choices import Choices
from mucd_ray.service.runs.mechanisms import CONDITIONAL
from mucd_ray.service.runs.settings import RunSettings
from mucd_ray.service.storage.store import RunStore
from mucd_ray.words import counted

# By whether there is an environment.
CARD = {True: "Environment card", False: "Declared spaces"}
CONSTANTS = {
    "gaussian": "Sample rate, noise multiplier, clip norm, steps, normaliser, network, optimiser and the environment card are constants that do not depend on the "
    "data, except on its rounded size where the next sentence says so.",
    "bag": "Bag size or rate, learner and the environment card are constants that do not depend on the data, except on its rounded size where the next sentence says so. Observations are "
    "taken as they were recorded; each policy normalises them by the statistics of its own bag.",
    "bag-then-noise": "Bag size or rate, sample rate, noise multiplier, clip norm, steps, normaliser, network, optimiser and the environment card are constants that do not depend on "
    "the data, nor on any bag, except on the data's rounded size where the next sentence says so.",
    "partition": "The number of parts, the hash that sorts units into them, learner and the environment card are constants that do not depend on the data, except on its rounded size where the next "
    "sentence says so. Observations are taken as they were recorded; each policy normalises them by the statistics of its own part.",
}
READER = "The dataset says that the plug-in {plugin}, {plugin.value} (SHA-256 of its package {plugin.sha256}), has read it from another format: D is what that made of the file."
PLUGIN = "The plug-in {plugin}, {plugin.value}, was installed beside this package (SHA-256 of its package {plugin.sha256}). {conditional}"
CONSTANTS_OUTSIDE = (
    "The sizes of bags or the number of parts, the trainer with all that its code contains or reads, and the environment card are constants that do not depend on the data, except on its rounded size where the "
    "next sentence says so. Observations are given to the trainer as they were recorded."
)


def assumptions(store: RunStore, settings: RunSettings, choices: Choices, instances: int) -> list[str]:
    """What must be true about this run, beside what every certificate assumes."""
    notes = [
        _looks_note(store, choices, instances),
        _constants(settings),
        settings.size_note(choices.threat),
        *([] if settings.choice_margin is None else [_choice_note(settings, settings.choice_margin)]),
        f"{CARD[settings.plays]}: {settings.card.source}",
        *([] if settings.source_key is None else [f"The source of a trajectory is told by the key {settings.source_key!r}, as it was recorded with the data."]),
        *settings.assumptions,
        *((READER if plugin.kind == "format" else PLUGIN).format(plugin=plugin, conditional=CONDITIONAL) for plugin in settings.plugins),
    ]
    # Not the threat and the accountant: what is said against one threat, or by one rule, is true beside what is said by another.
    given = [name for name in ("eta", "band", "inference") if getattr(choices, name) != getattr(Choices(), name)]
    if given:
        notes.append(f"Of this certificate {', '.join(given)} were given by the user: the confidence holds if they were not chosen by looking at results.")
    if settings.rollouts:
        notes.append(_range_note(settings))
    if settings.states_sha256 is not None:
        notes.append("The states were given by the user: the claim about actions holds if they were chosen independently of the instances that vote.")
    if not settings.columns:
        notes.append("The environment's actions are unbounded: there is no public grid on which to count them, and no action is certified.")
    return notes


def _constants(settings: RunSettings) -> str:
    note = CONSTANTS[settings.mechanism.kind] if settings.trainer is None else CONSTANTS_OUTSIDE
    if settings.trainer is not None and settings.card.encoder is not None:
        note = note.replace("Observations are given to the trainer as they were recorded.", "The trainer is given features of observations in their place.")
    return note if settings.plays else note.replace("the environment card", "the declared spaces")


def _range_note(settings: RunSettings) -> str:
    low, high = settings.played_range
    if settings.evaluator is not None:
        return f"A score lies in the public range [{exactly(low)}, {exactly(high)}]: what is outside it, or does not come in time, counts as {exactly(low)}, on whatever data a policy was trained."
    if settings.card.clip_returns:
        return f"Every episode's return is clipped into the public range [{exactly(low)}, {exactly(high)}] before anything is done with it; nothing is claimed about unclipped returns."
    return f"Every episode's return lies in the declared public range [{exactly(low)}, {exactly(high)}], on whatever data a policy was trained."


def _choice_note(settings: RunSettings, margin: int) -> str:
    """Why unit and mechanism are what they are, where that followed from the number of trajectories."""
    note = f"Unit and mechanism are the package's defaults for so many trajectories; {counted(margin, 'trajectory')} more or fewer would not change that, and no larger radius is claimed"
    return note + (": a changed transition adds or takes away at most two." if settings.mechanism.unit == "transition" else ".")


def _looks_note(store: RunStore, choices: Choices, instances: int) -> str:
    if choices.looks == "anytime":
        return (
            f"This certificate is made at one of the public numbers of instances {', '.join(map(str, looks_up_to(1000)))}, ... (Renard's series R5), every one of which "
            "has its own share of eta: any rule by which training stopped or goes on is covered, also one that depends on results."
        )
    others, looks = [target for target in store.targets() if target != instances], store.looks()
    if not others and not looks:
        return f"The number of instances, {instances}, was fixed before they were trained."
    note = f"This run was asked for {counted(instances, 'instance')}"
    if others:
        note += f" and also for {', '.join(map(str, others))}"
    if looks:
        note += f", and its results were looked at at {', '.join(map(str, looks))} instances in order to stop or go on"
    return (
        f"{note}. The confidence holds if these numbers, and the choice among the certificates of this run, do not depend on results; nothing is claimed for a "
        "number that was chosen after looking."
    )


def context(store: RunStore, settings: RunSettings) -> dict:
    """Where the evidence comes from; no result depends on it."""
    baselines = store.baselines()
    return {
        "dataset": {"name": settings.dataset, "sha256": settings.fingerprint, "units": settings.units, "source_key": settings.source_key, "environment": settings.card.env_id if settings.plays else None},
        "trusted": settings.trusted and dict(zip(("name", "sha256"), settings.trusted)),
        "baselines": {key: value for key, value in (baselines or {}).items() if key != "reference"} or None,
        "normalised": _references(settings),
        "instances_asked_for": store.targets(),
        "instances_looked_at": store.looks(),
        "learner": settings.to_dict()["learner"] if settings.trainer is None else {"algorithm": settings.trainer.name},
        "fit": settings.to_dict()["fit"],
        "parameters": settings.problem.parameter_count if settings.trainer is None else None,
        "code": settings.code,
        "imports": list(settings.imports),
        "card_sha256": hashlib.sha256(json.dumps(settings.to_dict()["card"], sort_keys=True).encode()).hexdigest(),
        "states_sha256": store.states_hash(),
        "states_chosen_by": _states_chosen_by(settings),
        "software": {name: version(name) for name in ("mucd_ray", "numpy", "scipy", "torch", "ray", "gymnasium", "minari")},
    } | ({"labels_sha256": settings.labels_sha256} if settings.labels_sha256 else {}) | ({"plugins": [asdict(plugin) for plugin in settings.plugins]} if settings.plugins else {})


def _states_chosen_by(settings: RunSettings) -> str:
    if settings.states_from is not None:
        return "the trusted dataset {} (SHA-256 of its content {})".format(*settings.states_from)
    if settings.labels_sha256 is not None:
        return f"the test images of the dataset (SHA-256 of them and their labels {settings.labels_sha256})"
    return f"{settings.held_out} held-out instances" if settings.states_sha256 is None else "the user's file"


def _references(settings: RunSettings) -> dict | None:
    """Returns that count as 0 and as 100 in normalised scores, as the card states them; None for discounted returns or without them."""
    card = settings.card
    if settings.discount < 1 or settings.evaluator is not None or card.random_return is None or card.expert_return is None:
        return None
    return {"random": card.random_return, "expert": card.expert_return}
