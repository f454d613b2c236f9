class Last:
    def __del__(self):
        import colorsys
        open("imported", "w").write("yes")
last = Last()
