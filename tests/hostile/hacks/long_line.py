# Submits one line of ten million numbers.
# gets: error
open("submission.csv", "w").write("1," * 7_000_000 + "1")
