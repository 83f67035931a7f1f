"""Adding up what stored instances did: votes, levels and returns, each instance counted once. Knows nothing of Ray."""

from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from mucd_ray.certify.file.evidence import LEVELS, histogram
from mucd_ray.evaluate.evaluators import CAUSES
from mucd_ray.evaluate.votes import counts
from mucd_ray.service.storage.store import Block, RunStore, copies_that_count, instances_of, split

# Blocks read at a time: an object store answers each after tens of milliseconds.
READERS = 8


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the instances did: votes int [S, A] (of components as `evaluate.votes.counts` gives them), histogram of levels int [S, D, LEVELS + 1], returns [P] in the order of instances; and how many of them are the policy of
    the default action, since their learner failed, by cause: they count like all others. `unscored`: how many have a score that counts as the least, since there was none."""

    votes: np.ndarray
    histogram: np.ndarray
    returns: np.ndarray
    failures: dict[str, int]
    unscored: dict[str, int] = field(default_factory=dict)


class Tally:
    """Votes, levels and returns of the stored instances 0..instances-1.

    Blocks are counted as they come. Where one comes late that holds copies which count instead of others (`copies_that_count`), all are counted anew before anybody is told.
    """

    def __init__(self, store: RunStore, instances: int):
        self.store, self.settings, self.instances = store, store.settings(), instances
        self._empty()
        self.sync()

    def _empty(self) -> None:
        self.returns: dict[int, float] = {}
        self.failures: Counter[str] = Counter()
        self.unscored: Counter[str] = Counter()
        self.votes = np.zeros((self.settings.states if self.settings.actions else 0, self.settings.actions), np.int64)
        self.histogram = np.zeros((self.settings.states, self.settings.columns, LEVELS + 1), np.int64)
        self.counted: set[str] = set()
        # The block that was counted, by instance.
        self.taken: dict[int, str] = {}

    def sync(self) -> None:
        """Count every stored block that is not counted yet."""
        self.add(self.store.names())

    def add(self, names: Iterable[str]) -> None:
        """Count stored blocks; counting one again changes nothing, and one that is damaged or gone is left out."""
        names = sorted(name for name in names if name not in self.counted and instances_of(name).start < self.instances)
        if any(name < self.taken.get(instance, name) for name in names for instance in instances_of(name)):
            names = sorted(self.counted.union(names))
            self._empty()
        with ThreadPoolExecutor(READERS) as readers:
            for name, block, places in copies_that_count(zip(names, readers.map(self.store.read, names))):
                self._count(name, block, places)
                self.counted.add(name)

    def _count(self, name: str, block: Block, places: list[int]) -> None:
        new = [place for place in places if block.first + place < self.instances and block.first + place not in self.taken]
        self.taken |= {block.first + place: name for place in new}
        self.returns |= {block.first + place: float(block.returns[place]) for place in new}
        if new:
            self.histogram += histogram(block.levels[new])
            causes = block.causes()
            self.failures.update(causes[place] for place in new if causes[place])
            if block.unscored is not None:
                self.unscored.update(CAUSES[cause] for cause in block.unscored[new].tolist() if cause)
        if self.settings.actions:
            self.votes += counts(block.actions[new], self.settings.actions, self.settings.components or ())

    def extend(self, instances: int) -> None:
        """From now on count the instances up to this number, at least as large as before."""
        if instances > self.instances:
            # Those of blocks on the border are counted only now.
            self.counted = {name for name in self.counted if instances_of(name).stop <= self.instances}
            self.instances = instances
            self.sync()

    def missing(self, block_size: int) -> list[range]:
        """Blocks of at most `block_size` instances that are not counted."""
        done = np.zeros(self.instances, bool)
        done[list(self.returns)] = True
        return split(done, block_size)

    def evidence(self) -> Evidence:
        returns = np.array([self.returns[instance] for instance in sorted(self.returns)])
        return Evidence(votes=self.votes.copy(), histogram=self.histogram.copy(), returns=returns, failures=dict(sorted(self.failures.items())), unscored=dict(sorted(self.unscored.items())))
