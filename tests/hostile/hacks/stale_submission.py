# Relies on the submission of an earlier run.
# gets: error
print("done")
