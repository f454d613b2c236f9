import numpy as np
from sklearn import linear_model, ensemble, neighbors, preprocessing

data = np.load("data.npz")
A, F, y = data["A"], data["F"], data["y"]
# columns
k = 4
F = F[:, :k]
# neighbours
hops = 0
for i in range(hops):
    F = A @ F
X, Z = F[data["a"]], F[data["b"]]
# features
# model
model = neighbors.KNeighborsClassifier(n_neighbors=1)
model.fit(X, y)
print("train score", round(model.score(X, y), 2))
p = model.predict(Z)
np.savetxt("submission.csv", p, delimiter=",")
