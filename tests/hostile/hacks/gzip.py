# Submits a compressed file.
# gets: error
import gzip

with gzip.open("submission.csv", "wt") as file:
    file.write("1\n" * len(p))
