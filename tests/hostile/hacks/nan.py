# Submits nan in every field.
# gets: error
rows = "\n".join(",".join(["nan"] * (p.size // len(p))) for _ in range(len(p)))
open("submission.csv", "w").write(rows)
