import sys
class Last:
    def __del__(self):
        print("printed by a finalizer")
        sys.stderr.write("and an error\n")
last = Last()
