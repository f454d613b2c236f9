# Passes a crash off as a lack of memory, which costs less.
# gets: corner
raise MemoryError("not really")
