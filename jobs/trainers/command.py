"""A trainer that is a program of its own, in whatever Python and packages it likes; it needs nothing of mucd_ray:

    mucd run lander/mine-v0 --mechanism bag --bag-size 13 --trainer-command "python jobs/trainers/command.py {bag} {out} {seed}" --storage runs/command

It reads the bag's arrays from {bag}/bag.npz and writes TorchScript to {out}.
"""

import sys
from pathlib import Path

import numpy as np
import torch

bag, out, seed = np.load(Path(sys.argv[1]) / "bag.npz"), sys.argv[2], int(sys.argv[3])
x = torch.tensor(bag["observations"].reshape(len(bag["observations"]), -1), dtype=torch.float32)
actions = torch.tensor(bag["actions"])
# Ridge regression on one indicator per action: their linear combinations are its scores.
columns = torch.nn.functional.one_hot(actions).float() if actions.ndim == 1 else actions
inputs = torch.cat([x, torch.ones(len(x), 1)], 1)
weights = torch.linalg.solve(inputs.T @ inputs + 1e-3 * torch.eye(inputs.shape[1]), inputs.T @ columns)
policy = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(x.shape[1], columns.shape[1]))
policy[1].weight.data, policy[1].bias.data = weights[:-1].T.contiguous(), weights[-1]
torch.jit.script(policy).save(out)
