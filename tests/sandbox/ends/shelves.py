import shelve
shelf = shelve.open("shelf", writeback=True)
shelf["a"] = 1
shelf["b"] = [2]
