#!/bin/sh
# PyTorch, transformers and PEFT for the CPU, pinned, from PyPI, in 1.6 GB and about a minute: PyPI's wheel is the CUDA one, taken
# here without its CUDA libraries (another 4 GB), of which it gets tiny stand-ins. Needs python3 with venv, gcc and binutils.
#   benches/peers/install.sh FOLDER      afterwards: cargo bench --bench peers -- --torch FOLDER
set -eu
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:?usage: install.sh FOLDER}
python3 -m venv "$folder"
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -r "$here/requirements.txt"
site=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
"$folder/bin/python" "$here/cuda_stubs.py" "$site/torch/lib" "$folder/cudastubs"
LD_LIBRARY_PATH="$folder/cudastubs" "$folder/bin/python" -c \
    'import torch, transformers, peft; print("torch", torch.__version__, "transformers", transformers.__version__, "peft", peft.__version__)'
