"""Says whether the reference files made in a folder are those that are committed.

    python compare.py NEW COMMITTED

Files must be equal, but for sums, which another processor may round otherwise: values in f64 to 1e-12 (whole
updates to 1e-9), transformers' own errors in f32 to a factor of 4 or the rounding of one number.
"""
import json
import math
import sys
from pathlib import Path

import safetensors.torch

import peer


ROUNDING = 2.0**-24


def is_like(new, old):
    """Whether two errors in f32 are of one size."""
    new, old = max(new, ROUNDING), max(old, ROUNDING)
    return new / 4 <= old <= new * 4


def unlike(new, old, name=""):
    """What differs between two JSON values by more than rounding. Numbers of a list by their largest."""
    if isinstance(new, dict) and isinstance(old, dict) and new.keys() == old.keys():
        for key in new:
            yield from unlike(new[key], old[key], f"{name}.{key}")
    elif isinstance(new, list) and isinstance(old, list) and len(new) == len(old):
        if all(isinstance(value, float) for value in new + old):
            largest = max(map(abs, old), default=0.0)
            if any(abs(a - b) > 1e-12 * largest for a, b in zip(new, old)):
                yield name
        else:
            for i, pair in enumerate(zip(new, old)):
                yield from unlike(*pair, f"{name}[{i}]")
    elif isinstance(new, float) and isinstance(old, float):
        if not (is_like(new, old) if name.endswith(".f32") else math.isclose(new, old, rel_tol=1e-12)):
            yield f"{name}: {new!r} and {old!r}"
    elif new != old:
        yield name


def unlike_updates(new, old):
    """Inputs must be equal; values to 1e-9, since AdamW enlarges the rounding of small gradients; errors are of one size."""
    quantities = [{case["name"]: case.pop("quantities") for case in cases} for cases in (new, old)]
    if new != old:
        yield "other inputs"
    for case, found in quantities[0].items():
        expected = quantities[1].get(case, {})
        if found.keys() != expected.keys():
            yield f"{case}: other quantities"
        for key in found.keys() & expected.keys():
            (a, *errors), (b, *others) = found[key], expected[key]
            largest = max(map(abs, b))
            if largest == 0 or key.split(".")[1] not in ("actor", "critic"):
                largest = max(largest, 1.0)
            if len(a) != len(b) or any(abs(x - y) > 1e-9 * largest for x, y in zip(a, b)) or not all(map(is_like, errors, others)):
                yield f"{case}: {key}"


def differences(new, old, name):
    if name.name == "reference.safetensors":
        new, old = safetensors.torch.load_file(new), safetensors.torch.load_file(old)
        if new.keys() != old.keys():
            yield "other tensors"
        for key in new.keys() & old.keys():
            if (error := peer.error(old[key], new[key])) > 1e-12:
                yield f"{key} differs by {error:.1e}"
    elif name.name == "reference.json":
        new, old = (json.loads(path.read_text()) for path in (new, old))
        if new["sft"] != old["sft"]:
            yield "other settings"
        for key, error in new["own_f32_error"].items():
            if not is_like(error, old["own_f32_error"].get(key, 0.0)):
                yield f"own error of {key} is {error:.1e}"
    elif name.name == "metrics.json":
        new, old = (json.loads(path.read_text()) for path in (new, old))
        values = [[case.pop("value") for case in cases] for cases in (new, old)]
        if new != old or not all(math.isclose(a, b, rel_tol=1e-12) for a, b in zip(*values)):
            yield "other cases"
    elif name.name == "updates.json":
        yield from unlike_updates(*(json.loads(path.read_text()) for path in (new, old)))
    elif name.name == "losses.json":
        yield from unlike(*(json.loads(path.read_text()) for path in (new, old)))
    elif new.read_bytes() != old.read_bytes():
        yield "differs"


def main():
    new, old = map(Path, sys.argv[1:3])
    made = {path.relative_to(new) for path in new.rglob("*") if path.is_file()}
    committed = {path.relative_to(old) for path in [*old.glob("*.json"), *(old / "models").rglob("*")] if path.is_file()}
    found = [f"{name}: in only one of them" for name in sorted(made ^ committed)]
    for name in sorted(made & committed):
        found += [f"{name}: {difference}" for difference in differences(new / name, old / name, name)]
    print("\n".join(found) or f"{len(made)} files are as committed")
    sys.exit(bool(found))


main()
