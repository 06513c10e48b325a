#!/bin/bash
# Everything malax needs as files, for nodes without a network. Two steps, in the same Python on both sides:
#   wheelhouse.sh download FOLDER [EXTRA]     where there is a network, in malax's source tree (or MALAX=path)
#   wheelhouse.sh install FOLDER VENV [EXTRA] where there is none; MPICC=mpicc builds mpi4py against the site's MPI
# EXTRA is what to install besides malax, say tune; mpi4py comes as source, for the site's MPI. TORCH names torch's
# version, TORCH_INDEX where it is (without it the CPU build; empty: pip's own index, with CUDA).
set -euo pipefail
MALAX=${MALAX:-$(cd "$(dirname "$0")/../.." && pwd)}
what=${1:?download or install}
folder=${2:?a folder for the wheels}

case $what in
download)
  extra=${3:-}
  mkdir -p "$folder"
  index=${TORCH_INDEX-https://download.pytorch.org/whl/cpu}
  pip download -q -d "$folder" ${index:+--extra-index-url "$index"} "${TORCH:-torch}"
  # this very build, or what malax needs would be resolved to the newest one with CUDA
  torch=("$folder"/torch-[0-9]*.whl)
  torch=${torch[0]##*/torch-}
  echo "torch==${torch%%-*}" >"$folder/constraints.txt"
  pip wheel -q -w "$folder" --find-links "$folder" -c "$folder/constraints.txt" "$MALAX${extra:+[$extra]}"
  pip download -q -d "$folder" --no-deps --no-binary mpi4py mpi4py
  # what mpi4py is built with
  pip download -q -d "$folder" setuptools wheel cython build
  ;;
install)
  venv=${3:?where the virtual environment is to be}
  extra=${4:-}
  python3 -m venv "$venv"
  "$venv/bin/pip" install -q --no-index --find-links "$folder" -c "$folder/constraints.txt" "malax${extra:+[$extra]}"
  if [ -n "${MPICC:-}" ]; then
    MPICC=$MPICC "$venv/bin/pip" install -q --no-cache-dir --no-index --find-links "$folder" --no-binary mpi4py mpi4py
  fi
  ;;
*)
  echo "wheelhouse.sh: download or install, not $what" >&2
  exit 2
  ;;
esac
