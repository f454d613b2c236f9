"""Makes stand-ins for the CUDA libraries that PyPI's torch wheel asks for, so that it loads and runs on the CPU without them.
Every function of a stand-in returns 100 (cudaErrorNoDevice). A wheel built for the CPU asks for none, and gets none.
usage: cuda_stubs.py TORCH_LIB_FOLDER OUT_FOLDER"""
import collections
import re
import subprocess
import sys
from pathlib import Path

# Of the system, and so always there; libcuda is opened at run time only.
SYSTEM = re.compile(r"^(libc|libm|libdl|librt|libpthread|libgcc_s|libstdc\+\+|libz|libquadmath|ld-linux.*|libcuda)\.so")
# Whose symbols carry no version that names their library: told by their beginning.
PREFIXES = [
    ("nccl", "libnccl"), ("pnccl", "libnccl"), ("cusparseLt", "libcusparseLt"), ("nvshmem", "libnvshmem_host"),
    ("cuFile", "libcufile"), ("cufft", "libcufft"), ("cudnn", "libcudnn"), ("nvrtc", "libnvrtc"), ("cupti", "libcupti"),
]


def lines(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def inspect(folder):
    """The libraries asked for that are not there, and the undefined symbols with their versions ('' for none)."""
    libraries = sorted(folder.glob("*.so*"))
    there = {library.name for library in libraries}
    needed, undefined, defined = set(), {}, set()
    for library in libraries:
        names = re.findall(r"NEEDED.*\[(.*?)\]", "\n".join(lines("readelf", "-d", str(library))))
        needed |= {name for name in names if name not in there and not SYSTEM.match(name)}
        for line in lines("nm", "-D", str(library)):
            kind, symbol = line.split()[-2:]
            name, _, version = symbol.replace("@@", "@").partition("@")
            if kind == "U":
                undefined[name] = version
            elif kind not in "wv":
                defined.add(name)
    return needed, {name: version for name, version in undefined.items() if name not in defined}


def assign(needed, undefined):
    """The symbols of each library, as (name, version)."""
    symbols = collections.defaultdict(list)
    for name, version in undefined.items():
        if version in needed:
            symbols[version].append((name, version))
            continue
        library = next((library for prefix, library in PREFIXES if name.startswith(prefix)), None)
        for whole in needed:
            if library and whole.startswith(library + ".so"):
                symbols[whole].append((name, version))
    return symbols


def build(library, symbols, out):
    returns = {"x86_64": "mov $100,%eax\n ret", "aarch64": "mov w0, #100\n ret"}[lines("uname", "-m")[0]]
    assembly, script = out / "stub.s", out / "stub.map"
    functions = [f".globl {name}\n.type {name},%function\n{name}:\n {returns}" for name, _ in symbols]
    assembly.write_text("\n".join([".text", *functions, '.section .note.GNU-stack,"",%progbits', ""]))
    versions = sorted({version for _, version in symbols if version})
    members = {v: " ".join(f"{name};" for name, version in symbols if version == v) for v in versions}
    script.write_text("".join(f"{v} {{ global: {members[v]} }};\n" for v in versions))
    command = ["gcc", "-shared", "-nostdlib", "-o", str(out / library), str(assembly), f"-Wl,-soname,{library}"]
    subprocess.run(command + ([f"-Wl,--version-script={script}"] if versions else []), check=True)
    assembly.unlink()
    script.unlink()


def main():
    source, out = map(Path, sys.argv[1:3])
    out.mkdir(parents=True, exist_ok=True)
    needed, undefined = inspect(source)
    symbols = assign(needed, undefined)
    for library in sorted(needed):
        build(library, symbols[library], out)


main()
