"""A made-up load curve: a daily and a weekly wave in noise; 30 values are given, the next is asked.

    python prepare.py PUBLIC_DIR PRIVATE_DIR [SEED]

writes PUBLIC_DIR/data.npz and PRIVATE_DIR/labels.csv; SEED (0) draws the split.
"""
import sys

import numpy as np

public, private = sys.argv[1:3]
split = np.random.RandomState(int(sys.argv[3]) if len(sys.argv) > 3 else 0)

random = np.random.RandomState(21)
t = np.arange(950 * 31)
x = 10 + 3 * np.sin(2 * np.pi * t / 24) + 1.5 * np.sin(2 * np.pi * t / 7) + 0.5 * random.randn(len(t))
# Windows do not overlap: else one window would hold the label of another.
windows = x.reshape(-1, 31)
X, y = windows[:, :30], windows[:, 30]
order = split.permutation(len(X))
train, test = order[:550], order[550:950]
np.savez(public + "/data.npz", X=X[train], y=y[train], Z=X[test])
np.savetxt(private + "/labels.csv", y[test], fmt="%.17g")
