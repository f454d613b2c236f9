import sys
for name in ["json", "sklearn", "__main__"]:
    sys.modules.pop(name, None)
import json
json.f = open("out", "w")
json.f.write("in a module that was loaded again")
