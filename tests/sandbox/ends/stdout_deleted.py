import sys

file = open("submission.csv", "w")
file.write("id,amount\n1,0.5\n")
print("before")
del sys.stdout
