# Submits one row, which it hopes is spread over all.
# gets: error
np.savetxt("submission.csv", p[:1], delimiter=",")
