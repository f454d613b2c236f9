# A sparse submission of a terabyte.
# verdict: file
with open("submission.csv", "wb") as file:
    file.truncate(1 << 40)
print("sparse: DONE")
