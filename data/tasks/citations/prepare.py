"""A made-up citation graph of four fields (stochastic block model).

    python prepare.py PUBLIC_DIR PRIVATE_DIR [SEED]

writes PUBLIC_DIR/data.npz and PRIVATE_DIR/labels.csv; SEED (0) draws the split.
"""
import sys

import numpy as np

public, private = sys.argv[1:3]
split = np.random.RandomState(int(sys.argv[3]) if len(sys.argv) > 3 else 0)

# Nodes of one class are linked with probability 0.06, of two classes with 0.02; features are class means in heavy noise.
random = np.random.RandomState(41)
nodes, classes, features = 400, 4, 12
y = random.randint(0, classes, nodes)
probability = np.where(y[:, None] == y[None], 0.06, 0.02)
A = np.triu(random.rand(nodes, nodes) < probability, 1)
A = (A + A.T + np.eye(nodes)).astype(float)
A /= A.sum(1, keepdims=True)  # row-normalised: A @ F averages over a node and its neighbours
means = random.randn(classes, features)
F = means[y] + 3.0 * random.randn(nodes, features)
order = split.permutation(nodes)
train, test = order[: nodes // 2], order[nodes // 2 :]
np.savez(public + "/data.npz", A=A, F=F, y=y[train], a=train, b=test)
np.savetxt(private + "/labels.csv", y[test], fmt="%.17g")
