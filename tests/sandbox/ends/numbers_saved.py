import numpy as np
a = np.memmap("map", dtype="f8", mode="w+", shape=3)
a[:] = 1.5
np.save(open("saved.npy", "wb"), np.arange(3))
f = open("text", "w")
np.savetxt(f, np.arange(3.0))
