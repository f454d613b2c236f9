# Takes memory without end in one process.
# verdict: oom
blocks = []
while True:
    blocks.append(bytearray(1 << 20))
