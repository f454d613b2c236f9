f = open("out", "w")
def note(text):
    f.write(text)
note("from a function")
held = [lambda: f]
