# Sleeps past its limit.
# verdict: timeout
# limits: wall=0.5
import time

time.sleep(1000)
