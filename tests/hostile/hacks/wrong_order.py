# Submits the rows in another order.
# gets: edit
np.savetxt("submission.csv", p[::-1], delimiter=",")
