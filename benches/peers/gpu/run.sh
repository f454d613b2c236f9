#!/bin/sh
# All that a machine with a GPU can say: ours, the peers, ours again, and compute-sanitizer; into OUT.
#   run.sh OUT [ONESTEP]      ONESTEP: the program; target/release/onestep or the one on the PATH when not given
# Needs the program alone; Python with PyTorch and compute-sanitizer are used where they are, else a row says why not.
set -u
out=${1:?run.sh OUT [ONESTEP]: OUT is missing, for example benches/results/gpu}
here=$(cd "$(dirname "$0")" && pwd)
onestep=${2:-}
if [ -z "$onestep" ]; then
    onestep=$here/../../../target/release/onestep
    [ -x "$onestep" ] || onestep=$(command -v onestep || true)
fi
[ -x "$onestep" ] || { echo "run.sh: no program; build it with cargo build --release, or name it: run.sh OUT path/to/onestep" >&2; exit 2; }
mkdir -p "$out" || exit 2
failed=0
row() { # suite kernel status
    printf '{"suite":"%s","kernel":"%s","provider":"ours","mode":"full","shape":"","dtype":"bf16","status":"%s"}\n' "$1" "$2" "$3" >> "$out/sanitizer.jsonl"
    echo "$1 $2: $3"
}

"$onestep" bench --all --seconds "${SECONDS_OURS:-480}" --out "$out" || failed=1

: > "$out/peers.jsonl"
ceilings=$(python3 - "$out/bench.jsonl" <<'PY' 2>/dev/null
import json, sys
rows = [json.loads(line) for line in open(sys.argv[1])]
find = lambda kernel, field: next(r[field] for r in rows if r["suite"] == "ceiling" and r["kernel"] == kernel and r["median"])
print(f'{find("gemm", "tflops")},{find("copy", "gbps")}')
PY
)
if command -v python3 > /dev/null; then
    python3 "$here/peers.py" --out "$out/peers.jsonl" --seconds "${SECONDS_PEERS:-480}" ${ceilings:+--ceilings "$ceilings"} || failed=1
else
    echo '{"suite":"kernel","kernel":"peers","provider":"torch","mode":"full","shape":"","dtype":"bf16","status":"not run: no python3"}' >> "$out/peers.jsonl"
fi

# Ours once more, after the peers: a machine that slowed down shows.
scratch=$(mktemp -d) || exit 2
trap 'rm -rf "$scratch"' EXIT
"$onestep" bench --only kernel/ --seconds "${SECONDS_AGAIN:-120}" --out "$scratch" || failed=1
cp "$scratch/bench.jsonl" "$out/again.jsonl"

: > "$out/sanitizer.jsonl"
rm -f "$out/sanitizer.log"
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2> /dev/null | head -1)
for tool in memcheck racecheck; do
    if [ -z "$sanitizer" ]; then
        row sanitizer "$tool" "not run: compute-sanitizer is not installed"
    elif timeout "${SECONDS_SANITIZER:-600}" "$sanitizer" --tool "$tool" --error-exitcode 86 "$onestep" bench --quick --only correctness --separate-allocations --out "$scratch" > "$scratch/log" 2>&1; then
        row sanitizer "$tool" checked
    else
        code=$?
        case $code in
            124) row sanitizer "$tool" "not run: longer than ${SECONDS_SANITIZER:-600} seconds" ;;
            86) row sanitizer "$tool" "wrong: see sanitizer.log"; failed=1 ;;
            *) row sanitizer "$tool" "wrong: exit code $code; see sanitizer.log"; failed=1 ;;
        esac
        tail -c 1000000 "$scratch/log" >> "$out/sanitizer.log"
    fi
done
"$onestep" bench --table "$out" > "$out/table.md" && cat "$out/table.md"
exit $failed
