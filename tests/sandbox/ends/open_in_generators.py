def lines():
    with open("generator", "w") as f:
        try:
            while True:
                f.write((yield))
        finally:
            f.write("finally")
g = lines()
next(g)
g.send("sent ")
