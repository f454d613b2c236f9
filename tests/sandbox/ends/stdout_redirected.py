import contextlib
redirection = contextlib.redirect_stdout(open("printed", "w"))
redirection.__enter__()
print("into a file")
