"""Decision Transformer (Chen et al., NeurIPS 2021): the action that followed in an episode, from its last steps (return to go, observation, action) up to it.

The loss is that of cloning; what makes it one is the network (`learn/decision_transformer.py`) and what it sees. The policy aims at a return of its own bag, the quantile `target`,
less what its episode has earned so far.
"""

from dataclasses import replace

from mucd_ray.learn.algorithms import rvs

DISCRETE = replace(rvs.DISCRETE, recalls=True)
CONTINUOUS = replace(rvs.CONTINUOUS, recalls=True)
