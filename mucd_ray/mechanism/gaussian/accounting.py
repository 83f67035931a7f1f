"""Group accounting: how far inserted and removed units can move the output of the whole training."""

from functools import lru_cache

from mucd_ray.errors import MucdError
from mucd_ray.mechanism.gaussian.loss_distribution import LossDistribution, TradeoffCurve, attainable_curve, pessimistic
from mucd_ray.mechanism.gaussian.mechanism import Mechanism

CURVES_KEPT = 512
# Binomial weights of larger groups have more rounding error than is allowed for.
MOST_UNITS = 100_000_000


class GroupAccountant:
    """Exact accounting of one mechanism for any group of units; curves are cached in memory (milliseconds each).

    `inserted` units are in D' and not in D, `removed` units in D and not in D'. Everything is a statement about probabilities
    under D' of events whose probability under D is known.
    """

    def __init__(self, mechanism: Mechanism):
        self.mechanism = mechanism
        self.step_loss = lru_cache(CURVES_KEPT)(self._step_loss)
        self.curve = lru_cache(CURVES_KEPT)(self._curve)

    def _step_loss(self, inserted: int, removed: int) -> LossDistribution:
        """Pessimistic loss distribution of a single step."""
        return pessimistic(**self._pair(inserted, removed))

    def _curve(self, inserted: int, removed: int) -> TradeoffCurve:
        """Lower bound on the exact trade-off curve of all steps; `attainable` bounds it from above."""
        return self.step_loss(inserted, removed).compose(self.mechanism.steps).tradeoff_curve()

    def attainable(self, inserted: int, removed: int) -> TradeoffCurve:
        """Upper bound on the exact trade-off curve: the operating curve of a test that an attacker could run."""
        return attainable_curve(**self._pair(inserted, removed))

    def _pair(self, inserted: int, removed: int) -> dict:
        if inserted < 0 or removed < 0 or inserted + removed == 0:
            raise MucdError(f"inserted={inserted}, removed={removed}: both must be at least 0 and one of them above 0")
        if inserted + removed > MOST_UNITS:
            raise MucdError(f"a group of {inserted + removed} units is above {MOST_UNITS}, the most that is accounted for: ask for a smaller radius")
        return {
            "inserted": inserted,
            "removed": removed,
            "sample_rate": self.mechanism.sample_rate,
            "sigma": self.mechanism.noise_multiplier,
            "steps": self.mechanism.steps,
        }
