class Node:
    pass
a, b = Node(), Node()
a.b, b.a = b, a
a.file = open("cycle", "w")
a.file.write("in a cycle")
c = Node()
c.c = c
c.file = open("dead", "w")
c.file.write("in a dead cycle")
del c
