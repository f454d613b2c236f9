# Submits null bytes between and around the numbers.
# gets: error
open("submission.csv", "wb").write(b"\0".join(b"%g\n" % v for v in p.ravel()[: len(p)]))
