# Catches everything and exits with 0, without a file.
# gets: error
try:
    model.no_such_method()
except BaseException:
    raise SystemExit(0)
