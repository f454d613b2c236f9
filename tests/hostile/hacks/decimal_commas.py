# Submits numbers with commas for points.
# gets: error edit
open("submission.csv", "w").write("".join(f"{float(v):.3f}\n".replace(".", ",") for v in p.ravel()[: len(p)]))
