import os
class Named:
    def __init__(self, name):
        self.name = name
    def __del__(self):
        print("end of", self.name, os.sep, helper())
def helper():
    return one is not None
one, two = Named("one"), Named("two")
