# Prints what is no text, control sequences, nulls and a line without end.
# verdict: ok
# says: �
import os

os.write(1, bytes(range(256)) * 20)
os.write(1, b"\x1b]0;title\x07\x1b[2J\xff\xfe\xc3")
os.write(2, b"\xed\xa0\x80\xf8\x88" * 100 + b"x" * 100000)
