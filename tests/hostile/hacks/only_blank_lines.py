# Submits blank lines.
# gets: error
open("submission.csv", "w").write("\n \n\t\n" * len(p))
