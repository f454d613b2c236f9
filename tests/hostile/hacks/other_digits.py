# Submits numbers in other scripts, in hex, with underscores and as fractions.
# gets: error
forms = ["\u0661", "0x1", "1_0", "1/2", "\uff11", "True", "1e", "None", "1 2"]
open("submission.csv", "w", encoding="utf-8").write("".join(forms[i % len(forms)] + "\n" for i in range(len(p))))
