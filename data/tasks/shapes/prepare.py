"""Drawn 10x10 images in noise: a vertical bar, a horizontal bar, a block or a diagonal.

    python prepare.py PUBLIC_DIR PRIVATE_DIR [SEED]

writes PUBLIC_DIR/data.npz and PRIVATE_DIR/labels.csv; SEED (0) draws the split.
"""
import sys

import numpy as np

public, private = sys.argv[1:3]
split = np.random.RandomState(int(sys.argv[3]) if len(sys.argv) > 3 else 0)

random = np.random.RandomState(31)
images, side = 1000, 10
y = random.randint(0, 4, images)
X = np.zeros((images, side, side))
for image, shape in zip(X, y):
    a, b = random.randint(1, 5, 2)
    k = random.randint(3, 6)
    if shape == 0:
        image[a : a + k, b] = 1
    elif shape == 1:
        image[a, b : b + k] = 1
    elif shape == 2:
        image[a : a + k, b : b + k] = 1
    else:
        image[range(a, a + k), range(b, b + k)] = 1
X = (X + 0.35 * random.randn(images, side, side)).reshape(images, -1)
order = split.permutation(len(X))
train, test = order[:550], order[550:1000]
np.savez(public + "/data.npz", X=X[train], y=y[train], Z=X[test])
np.savetxt(private + "/labels.csv", y[test], fmt="%.17g")
