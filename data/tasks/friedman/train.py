import numpy as np
from sklearn import linear_model, ensemble, svm, preprocessing

data = np.load("data.npz")
X, y, Z = data["X"], data["y"], data["Z"]
# rows
n = 50
X, y = X[:n], y[:n]
# columns
k = 3
X, Z = X[:, :k], Z[:, :k]
# features
# model
model = linear_model.Lasso(alpha=1)
model.fit(X, y)
print("train score", round(model.score(X, y), 2))
p = model.predict(Z)
np.savetxt("submission.csv", p, delimiter=",")
