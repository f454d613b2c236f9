class Bad:
    def __del__(self):
        raise RuntimeError("in a finalizer")
bad = Bad()
