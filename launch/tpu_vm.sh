#!/usr/bin/env bash
# All hosts of a Cloud TPU slice; JAX finds them by itself:
#   ZONE=us-central2-b launch/tpu_vm.sh TPU_NAME --config FILE --workdir DIR --data DIR [...]
# The repository lies in ~/osteojax on every host, installed with
#   gcloud compute tpus tpu-vm ssh TPU_NAME --zone "$ZONE" --worker all --command \
#     "cd osteojax && python3 -m venv .venv && .venv/bin/pip install -e '.[tpu]'"
# and DIR is on a disk that all hosts mount (Filestore, or a bucket by gcsfuse). Where the run ended
# before it was done, the same command goes on.
set -euo pipefail
name=${1:?usage: ZONE=... launch/tpu_vm.sh TPU_NAME --config FILE --workdir DIR --data DIR}
shift
printf -v arguments '%q ' "$@"
exec gcloud compute tpus tpu-vm ssh "$name" --zone "${ZONE:?}" --worker all \
  --command "cd osteojax && .venv/bin/osteojax train $arguments"
