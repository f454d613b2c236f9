import numpy as np
from sklearn import linear_model, ensemble, neighbors

data = np.load("data.npz")
X, y, Z = data["X"], data["y"], data["Z"]
# rows
n = 30
X, y = X[:n], y[:n]
# columns
k = 2
X, Z = X[:, :k], Z[:, :k]
# features
# model
model = linear_model.Ridge(alpha=1)
model.fit(X, y)
print("train score", round(model.score(X, y), 2))
p = model.predict(Z)
np.savetxt("submission.csv", p, delimiter=",")
