class Log:
    file = open("class", "w")
    def __init__(self, name):
        self.own = open(name, "w")
        self.own.write("instance")
Log.file.write("class")
log = Log("instance")
