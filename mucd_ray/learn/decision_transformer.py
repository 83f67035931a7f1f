"""The network of Chen et al. (NeurIPS 2021): a causal transformer over (return to go, observation, action) of an episode's last steps, trained by `engines/plain.py`."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from mucd_ray.data.environments.past import ACTION, EARNED, THERE
from mucd_ray.learn.transformer import HEADS, WIDTH, encoder, initialised


class DecisionTransformer(nn.Module):
    """Steps as `past.Past` gives them, flattened [B, history width], oldest first -> [B, outputs], the action at the last one.

    Each step is three tokens, the action before it, the return to go and the observation, with a learned place in common; the first action, which belongs to a step before, is left out. So
    the tokens are g_1, o_1, a_1, g_2, ..., g_K, o_K, each of which sees those before it; what an episode has not had yet is seen by none.

    While it learns it is `told` the whole return of the trajectory, the last of [B, history width + 1]: the return to go is what is told less what was earned before. Else it is told 0, and
    `on_raw_past` puts the policy's target into the bias.
    """

    earlier: Tensor
    itself: Tensor

    def __init__(self, outputs: int, history: int, actions: int, width: int, told: bool):
        super().__init__()
        self.history, self.told, self.before = history, told, ACTION + actions
        self.act = nn.Linear(actions, WIDTH)
        self.hope = nn.Linear(1, WIDTH)
        self.observe = nn.Linear(width - self.before, WIDTH)
        self.place = nn.Parameter(torch.zeros(history, 1, WIDTH))
        self.encoder = encoder()
        self.head = nn.Linear(WIDTH, outputs)
        tokens = 3 * history - 1
        self.register_buffer("earlier", torch.ones(tokens, tokens, dtype=torch.bool).tril(-1), persistent=False)
        self.register_buffer("itself", torch.eye(tokens, dtype=torch.bool), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        told, x = (x[:, None, -1:], x[:, :-1]) if self.told else (0.0, x)
        steps = x.unflatten(1, (self.history, -1))
        hopes = told - steps[..., EARNED : EARNED + 1]
        tokens = torch.stack([self.act(steps[..., ACTION : self.before]), self.hope(hopes), self.observe(steps[..., self.before :])], dim=2) + self.place
        there = steps[..., THERE] > 0.5
        # An action is there where the step before is, in which it was taken.
        seen = torch.stack([torch.cat([there[:, :1], there[:, :-1]], dim=1), there, there], dim=2).flatten(1)[:, 1:]
        # Every token sees itself: of one that saw nothing attention would be NaN.
        mask = ~(self.earlier & seen[:, None, :] | self.itself)
        return self.head(self.encoder(tokens.flatten(1, 2)[:, 1:], mask=mask.repeat_interleave(HEADS, 0), is_causal=False)[:, -1])


def decision_transformer(outputs: int, history: int, actions: int, width: int, told: bool) -> Callable[[np.random.Generator], nn.Module]:
    """Factory of a `DecisionTransformer` of steps of `width` numbers, `actions` of which are the action's; parameters as of `transformer`."""
    return initialised(lambda: DecisionTransformer(outputs, history, actions, width, told))


def alike_in_steps(center: np.ndarray, deviation: np.ndarray, history: int) -> tuple[np.ndarray, np.ndarray]:
    """Means and deviations [history width + 1] of all numbers -> with which steps and what is told are normalised: every step as the last one, which is always there and is each step once.

    Whether a step is there stays as it is. What is told and what was earned have one scale, so that their difference is a return to go.
    """
    width = (len(center) - 1) // history
    mean, spread = center[-1 - width : -1].copy(), deviation[-1 - width : -1].copy()
    told, scale = center[-1] - mean[EARNED], np.hypot(spread[EARNED], deviation[-1])
    mean[[THERE, EARNED]], spread[THERE], spread[EARNED] = 0.0, 1.0, scale
    return np.append(np.tile(mean, history), told), np.append(np.tile(spread, history), scale)


def on_raw_past(policies: dict[str, Tensor], center: np.ndarray, scale: np.ndarray) -> dict[str, Tensor]:
    """Policies [P, ...] of (x - c) / s with c, s float64 [P, history width + 1] as `alike_in_steps` gives them, as the same policies of x; what they are told is 0 and is left out."""
    mean, spread = torch.from_numpy(center), torch.from_numpy(scale)
    before = ACTION + policies["act.weight"].shape[-1]
    # The return to go is what is told less what was earned, both over one scale; of what was earned the center is 0.
    parts = {"act": slice(ACTION, before), "hope": slice(-1, None), "observe": slice(before, before + policies["observe.weight"].shape[-1])}
    folded = {}
    for name, part in parts.items():
        weight = policies[f"{name}.weight"].double() / spread[:, None, part]
        folded[f"{name}.weight"] = weight.float()
        folded[f"{name}.bias"] = (policies[f"{name}.bias"].double() - (weight @ mean[:, part, None])[..., 0]).float()
    return policies | folded
