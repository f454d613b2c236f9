# Submits the predictions behind a byte order mark.
# gets: error edit
np.savetxt("submission.csv", p, delimiter=",", encoding="utf-8-sig")
text = open("submission.csv", encoding="utf-8").read().lstrip("\ufeff")
open("submission.csv", "w", encoding="utf-8-sig").write(text)
