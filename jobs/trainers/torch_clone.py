"""Behaviour cloning in plain PyTorch, as a trainer of one's own:

    mucd run lander/mine-v0 --mechanism bag --bag-size 13 --trainer jobs/trainers/torch_clone.py:clone --storage runs/torch

The better half of the bag's trajectories is imitated. All of this is a function of the bag and the seed, so nothing of it needs a proof.
"""

import gymnasium
import numpy as np
import torch
from torch import nn

STEPS, BATCH, HIDDEN = 1500, 128, 64


def clone(bag, seed, device):
    """A network on raw observations: logits of discrete actions, or the action itself."""
    generator = torch.Generator().manual_seed(seed)
    returns = [trajectory.rewards.sum() for trajectory in bag.trajectories]
    best = [bag.trajectories[i] for i in np.argsort(returns)[len(returns) // 2 :]]
    x = torch.tensor(np.concatenate([trajectory.observations[:-1] for trajectory in best]), dtype=torch.float32, device=device)
    discrete = isinstance(bag.action_space, gymnasium.spaces.Discrete)
    wanted = torch.tensor(np.concatenate([trajectory.actions for trajectory in best]), device=device)
    outputs = int(bag.action_space.n) if discrete else bag.action_space.shape[0]
    network = nn.Sequential(nn.Linear(x.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, outputs)).to(device)
    center, scale = x.mean(0), x.std(0, correction=0).clamp(min=1e-6)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(STEPS):
        rows = torch.randint(len(x), (BATCH,), generator=generator).to(device)
        answered = network((x[rows] - center) / scale)
        loss = nn.functional.cross_entropy(answered, wanted[rows] - int(bag.action_space.start)) if discrete else nn.functional.mse_loss(answered, wanted[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return nn.Sequential(Standardised(center, scale), network)


class Standardised(nn.Module):
    def __init__(self, center, scale):
        super().__init__()
        self.register_buffer("center", center)
        self.register_buffer("scale", scale)

    def forward(self, x):
        return (x - self.center) / self.scale
