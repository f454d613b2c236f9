# Submits ids beside the predictions, and a header.
# gets: error
table = np.asarray(p, float).reshape(len(p), -1)
np.savetxt("submission.csv", np.column_stack([np.arange(len(p)), table]), delimiter=",", header="id,prediction", comments="")
