"""A random forest of scikit-learn that imitates the bag, given back as ONNX (pip install scikit-learn skl2onnx 'mucd_ray[onnx]'):

    mucd run lander/mine-v0 --mechanism bag --bag-size 13 --trainer jobs/trainers/forest.py:forest --storage runs/forest
"""

import numpy as np
from skl2onnx import to_onnx
from sklearn.ensemble import RandomForestClassifier

TREES, LEAF = 30, 5


def forest(bag, seed, device):
    """Of discrete actions. Its first output is the action, as the data have it."""
    model = RandomForestClassifier(TREES, min_samples_leaf=LEAF, random_state=seed).fit(bag.observations.astype(np.float32), bag.actions)
    return to_onnx(model, np.zeros((1, bag.observations.shape[1]), np.float32), options={"zipmap": False}).SerializeToString()
