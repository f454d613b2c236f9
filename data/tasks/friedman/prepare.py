"""Friedman's first regression problem, drawn by scikit-learn: five of ten columns matter.

    python prepare.py PUBLIC_DIR PRIVATE_DIR [SEED]

writes PUBLIC_DIR/data.npz and PRIVATE_DIR/labels.csv; SEED (0) draws the split.
"""
import sys

import numpy as np
from sklearn.datasets import make_friedman1

public, private = sys.argv[1:3]
split = np.random.RandomState(int(sys.argv[3]) if len(sys.argv) > 3 else 0)

X, y = make_friedman1(700, 10, noise=1.0, random_state=5)
order = split.permutation(len(X))
train, test = order[:350], order[350:700]
np.savez(public + "/data.npz", X=X[train], y=y[train], Z=X[test])
np.savetxt(private + "/labels.csv", y[test], fmt="%.17g")
