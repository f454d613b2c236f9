f = open("out", "w")
f.write("flushed")
raise KeyboardInterrupt
