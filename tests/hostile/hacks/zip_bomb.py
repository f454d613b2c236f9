# Submits an archive that unpacks to a gigabyte.
# gets: error
import zipfile

with zipfile.ZipFile("submission.csv", "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("submission.csv", b"1\n" * (1 << 24))
