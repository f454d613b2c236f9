# Writes the submission, then sleeps until it is stopped.
# gets: corner
import time

np.savetxt("submission.csv", p, delimiter=",")
while True:
    time.process_time()
