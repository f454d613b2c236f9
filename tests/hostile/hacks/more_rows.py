# Submits a row more.
# gets: error
np.savetxt("submission.csv", np.concatenate([p, p[:1]]), delimiter=",")
