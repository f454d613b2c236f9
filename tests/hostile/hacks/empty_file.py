# Submits an empty file.
# gets: error
open("submission.csv", "w").close()
