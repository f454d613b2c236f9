class Empty(Exception):
    def __len__(self):
        return 0


file = open("submission.csv", "w")
file.write("id,amount\n1,0.5\n")
raise Empty("nothing in it")
