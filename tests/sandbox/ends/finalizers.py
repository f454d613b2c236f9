import weakref
class Named:
    def __init__(self, name):
        self.name = name
    def __del__(self):
        print("end of", self.name)
one, _two = Named("one"), Named("two")
inner = Named("inner")
outer = Named("outer")
outer.inner = inner
del inner
weakref.finalize(one, print, "finalized")
late = weakref.finalize(one, print, "not at exit")
late.atexit = False
