import json, logging, warnings
import numpy
numpy.kept = open("numpy", "w")
numpy.kept.write("kept by a library")
f = open("out", "w")
f.write("beside a patched library")
warnings.warn = lambda *args, **named: f.write("warned")
class Held:
    def __del__(self):
        print("let go", file=open("held", "w"))
json.held = Held()
