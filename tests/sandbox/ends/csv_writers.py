import csv
writer = csv.writer(open("out.csv", "w", newline=""))
writer.writerow([1, "two"])
