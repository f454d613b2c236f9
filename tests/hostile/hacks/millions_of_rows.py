# Submits as many rows as the file limit takes.
# gets: error
open("submission.csv", "w").write("1\n" * 8_000_000)
