# Submits a pickle that would run code where it is loaded.
# gets: error
import pickle


class Bomb:
    def __reduce__(self):
        return (open, ("/tmp/hostile-left-pickle", "w"))


open("submission.csv", "wb").write(pickle.dumps(Bomb()))
