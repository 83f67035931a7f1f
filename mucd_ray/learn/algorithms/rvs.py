"""Cloning that is told the return: supervised learning of the action from the observation and the return of its whole trajectory (RvS-R: Emmons et al., ICLR
2022, there the average return per step). The released policy is told a constant in its place, a quantile of the returns in its own bag.
"""

from dataclasses import replace

from mucd_ray.learn.algorithm import Constant
from mucd_ray.learn.algorithms import bc

TARGET = Constant(default=1.0, low=0.0, high=1.0, meaning="quantile of the returns of the bag's trajectories that the policy is asked for; 1 is the best one")

DISCRETE = replace(bc.DISCRETE, conditioned=True, constants={"target": TARGET})
# The first constant is the one that the loss of cloning reads.
CONTINUOUS = replace(bc.CONTINUOUS, conditioned=True, constants={**bc.CONTINUOUS.constants, "target": TARGET})
