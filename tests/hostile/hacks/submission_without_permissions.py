# Submits a file that nobody may read.
# gets: error
import os

np.savetxt("submission.csv", p, delimiter=",")
os.umask(0o777)
os.rename("submission.csv", "kept")
open("submission.csv", "w").close()
