# Submits a folder with a file of that name in it.
# gets: error
import os

os.mkdir("submission.csv")
np.savetxt("submission.csv/submission.csv", p, delimiter=",")
