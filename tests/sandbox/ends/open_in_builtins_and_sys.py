import builtins, sys
builtins.f = open("builtins", "w")
f.write("builtins")
sys.f = open("sys", "w")
sys.f.write("sys")
