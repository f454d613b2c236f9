import pathlib
pathlib.Path("beside.py").write_text("""
f = open("beside", "w")
f.write("from a module")
class Last:
    def __del__(self):
        print("module's last")
last = Last()
""")
import beside
