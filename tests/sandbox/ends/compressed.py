import gzip, bz2, zipfile
import io
g = io.TextIOWrapper(gzip.GzipFile("text.gz", "wb", mtime=0))
g.write("compressed")
b = bz2.open("bytes.bz2", "wb")
b.write(b"compressed")
