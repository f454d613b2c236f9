"""Chemical analysis of wines of three cultivars, which scikit-learn ships (UCI).

    python prepare.py PUBLIC_DIR PRIVATE_DIR [SEED]

writes PUBLIC_DIR/data.npz and PRIVATE_DIR/labels.csv; SEED (0) draws the split.
"""
import sys

import numpy as np
from sklearn.datasets import load_wine

public, private = sys.argv[1:3]
split = np.random.RandomState(int(sys.argv[3]) if len(sys.argv) > 3 else 0)

X, y = load_wine(return_X_y=True)
order = split.permutation(len(X))
train, test = order[:90], order[90:178]
np.savez(public + "/data.npz", X=X[train], y=y[train], Z=X[test])
np.savetxt(private + "/labels.csv", y[test], fmt="%.17g")
