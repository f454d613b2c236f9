# Submits every row twice.
# gets: error
np.savetxt("submission.csv", np.repeat(p, 2, axis=0), delimiter=",")
