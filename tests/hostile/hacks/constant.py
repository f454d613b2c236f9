# Submits one and the same prediction in every row.
# gets: edit
table = np.asarray(p, float).reshape(len(p), -1)
np.savetxt("submission.csv", np.tile(table[:1], (len(p), 1)), delimiter=",")
