# Crashes after half of the submission and says that all went well.
# gets: error
import os

np.savetxt("submission.csv", p[:10], delimiter=",")
try:
    raise RuntimeError("crash")
finally:
    os._exit(0)
