# Calls by numbers that the filter may not know: x86's 32-bit-pointer ones and those of a later kernel.
# verdict: ok
from tried import call, tried

for number in (39, 56, 101, 165, 272, 520, 521):
    tried("x32", lambda: call(0x40000000 + number, 0, 0, 0, 0, 0))
for number in range(463, 560):
    tried("later", lambda: call(number, 0, 0, 0, 0, 0))
