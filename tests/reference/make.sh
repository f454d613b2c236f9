#!/bin/sh
# Makes the reference files again with the pinned PyTorch, transformers, PEFT and scikit-learn (installed into FOLDER when it is not
# there: 1.8 GB, some two minutes), then runs the test and makes RESULTS.csv and the table of docs/results.md from what it finds.
#   tests/reference/make.sh FOLDER              makes them
#   tests/reference/make.sh FOLDER --compare    changes nothing; says whether what is made equals what is committed
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../..
folder=${1:?usage: make.sh FOLDER [--compare]}
[ -x "$folder/bin/python" ] || "$root/benches/peers/install.sh" "$folder"
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -r "$here/requirements.txt"
python() { LD_LIBRARY_PATH="$folder/cudastubs" OMP_NUM_THREADS=1 "$folder/bin/python" -B -W ignore "$@"; }
new=$(mktemp -d)
trap 'rm -r "$new"' EXIT
python "$here/metrics.py" > "$new/metrics.json"
python "$here/losses.py" "$new/losses.json"
python "$here/chat.py" "$new/chat.json"
python "$here/models.py" "$new/models"
python "$here/updates.py" "$new/updates.json" "$new/models" > /dev/null
if [ "${2-}" = --compare ]; then
    python "$here/compare.py" "$new" "$here"
    exit
fi
cp "$new"/*.json "$here"
rm -rf "$here/models"
cp -r "$new/models" "$here/models"
(cd "$root" && cargo test --test reference errors)
cp "${CARGO_TARGET_DIR:-$root/target}/reference.csv" "$here/RESULTS.csv"
python "$here/table.py" "$root/docs/results.md"
