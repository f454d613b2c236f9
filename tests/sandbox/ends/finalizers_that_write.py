class Table:
    def __init__(self):
        self.rows = ["1", "2"]
    def __del__(self):
        with open("table", "w") as f:
            f.write("\n".join(self.rows))
table = Table()
