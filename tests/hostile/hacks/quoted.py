# Submits quoted numbers.
# gets: error edit
open("submission.csv", "w").write("".join(f'"{row}"\n' for row in p.ravel()[: len(p)]))
