import sys
print("first")
sys.stdout = open("printed", "w")
print("into a file")
sys.stderr = open("errors", "w")
raise ValueError("told there")
