"""A goal for a run: what a certificate must say before training may stop, such as `return>=0.5@0.01`."""

import math
import re
from dataclasses import dataclass
from decimal import Decimal, DecimalException
from fractions import Fraction

from mucd_ray.certify.rounding import exactly
from mucd_ray.errors import MucdError

# name -> (what it is, least and greatest value that make sense)
GOALS = {
    "return": ("share of the unpoisoned mean, counted from the least possible return, that the bound on the expected return keeps", 0.0, 1.0),
    "absolute-return": ("bound on the expected return", -math.inf, math.inf),
    "actions": ("share of the states whose action is certified, all states together", 0.0, 1.0),
}
SYNTAX = re.compile(r"(?P<name>[a-z-]+)>=(?P<least>[-+.0-9e]+)(?P<percent>%?)@(?P<fraction>[.0-9e-]+)(?P<of_data>%?)")


@dataclass(frozen=True)
class Goal:
    """`name` must reach `least` when the given fraction of the units (rounded up to whole units) is poisoned."""

    name: str
    least: float
    fraction: float

    @classmethod
    def parse(cls, text: str) -> "Goal":
        """NAME>=VALUE@FRACTION; VALUE (of a share) and FRACTION may be percentages: `return>=50%@1%`.

        Raises:
            MucdError: the text is not of this form, or a number is outside its range.
        """
        form = f"write NAME>=VALUE@FRACTION with NAME one of {', '.join(GOALS)}, for example return>=0.5@0.01"
        match = SYNTAX.fullmatch(text.replace(" ", ""))
        if match is None or match["name"] not in GOALS:
            raise MucdError(f"goal {text!r} is not understood: {form}")
        try:
            least = _number(match["least"], match["percent"])
            fraction = _number(match["fraction"], match["of_data"])
        except (DecimalException, OverflowError):
            raise MucdError(f"goal {text!r} is not understood: {form}") from None
        _, lowest, highest = GOALS[match["name"]]
        if not (lowest < least <= highest and math.isfinite(least)):
            raise MucdError(f"goal {text!r}: {match['name']} {exactly(least)} is outside ({lowest:g}, {highest:g}]")
        if not 0 <= fraction < 1:
            raise MucdError(f"goal {text!r}: fraction {exactly(fraction)} is outside [0, 1): 0.01 means 1 % of the units")
        return cls(match["name"], least, fraction)

    def radius(self, units: int) -> int:
        """r; the fraction is read as it was written: 0.07 of 100 units are 7, not 8."""
        return math.ceil(Fraction(str(self.fraction)) * units)

    def check(self, units: int, cap: int, *, discrete: bool) -> None:
        """Raise MucdError if no certificate of this dataset can meet the goal: a radius above `cap`, or actions that are not voted on."""
        if self.radius(units) > cap:
            raise MucdError(f"goal {self.name}: fraction {exactly(self.fraction)} is r = {self.radius(units)}, above {cap}, the largest radius that may be claimed: ask for less")
        if self.name == "actions" and not discrete:
            raise MucdError("goal actions: this policy's actions are continuous and no share of states is certified: use a goal on the return")


def _number(text: str, percent: str) -> float:
    """The float next to what is written: 29.1 % are 0.291, which 29.1 / 100 is not."""
    written = Decimal(text).scaleb(-2 if percent else 0)
    if Decimal(text) and not float(written):
        raise OverflowError("too small for a double")
    return float(written)
