import numpy as np
from sklearn import linear_model, ensemble, neighbors, preprocessing

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
model = linear_model.LogisticRegression(C=0.001, max_iter=20)
model.fit(X, y)
print("train score", round(model.score(X, y), 2))
p = model.predict_proba(Z)
np.savetxt("submission.csv", p, delimiter=",")
