import atexit, sys
def tell():
    print(sys.last_type.__name__, sys.last_value, "__file__" in globals())
atexit.register(tell)
raise ValueError("why")
