# Leaves a daemon that writes the submission when the script has ended.
# gets: error
import os
import time

if os.fork() == 0:
    os.setsid()
    time.sleep(600)
    np.savetxt("submission.csv", p, delimiter=",")
    os._exit(0)
