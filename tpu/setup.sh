#!/usr/bin/env bash
# Installs t5lite on every worker, in a Python of its own.
#
#   tpu/setup.sh --name=run1 --zone=us-west4-a
#
# The machines' image has Python 3.10 and JAX needs 3.11, so uv brings one: a single program that
# needs neither root nor a reboot. What is installed already stays. Flags of its own:
#   --source=WHAT   what pip takes: t5lite (the default), a version, git+https://..., or a folder
#                   or wheel here, which is copied to the workers first
#   --extras=NAMES  comma-separated, besides tpu: gs for TensorBoard on GCS, s3, tokenizers (gs)

set -euo pipefail
# shellcheck source=tpu/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
settings "$@"

SOURCE=t5lite
EXTRAS=gs
for flag in ${REST[@]+"${REST[@]}"}; do
  case "$flag" in
    --source=*) SOURCE="${flag#*=}" ;;
    --extras=*) EXTRAS="${flag#*=}" ;;
    *) fail "unknown flag $flag; see --help" ;;
  esac
done
EXTRAS="tpu${EXTRAS:+,$EXTRAS}"
if [[ "$SOURCE" =~ ^t5lite([^a-z/].*)?$ ]]; then
  REQUIREMENT="t5lite[$EXTRAS]${SOURCE#t5lite}"
elif [[ "$SOURCE" == *://* ]]; then
  REQUIREMENT="t5lite[$EXTRAS] @ $SOURCE"
elif [[ -e "$SOURCE" ]]; then
  BASE="$(basename "$(realpath "$SOURCE")")"
  for node in $(nodes); do
    run gcloud compute tpus tpu-vm ssh "$node" "${WHERE[@]}" --worker=all \
      "--command=rm -rf $REMOTE-source && mkdir -p $REMOTE-source"
    run gcloud compute tpus tpu-vm scp --recurse "$SOURCE" "$node:$REMOTE-source/" \
      "${WHERE[@]}" --worker=all
  done
  REQUIREMENT="t5lite[$EXTRAS] @ file://\$HOME/$REMOTE-source/$BASE"
else
  fail "--source=$SOURCE: neither a file here, nor a URL, nor t5lite with a version"
fi

on_workers all "set -e
command -v ~/.local/bin/uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
test -x ~/$REMOTE/bin/python || ~/.local/bin/uv venv --python 3.11 ~/$REMOTE
~/.local/bin/uv pip install --python ~/$REMOTE/bin/python \"$REQUIREMENT\"
~/$REMOTE/bin/t5lite --version"
# Alone, a process of several would wait for the others: all ask at once.
on_workers all "\$HOME/$REMOTE/bin/python -c 'import jax; jax.distributed.initialize()
print(jax.process_index(), \"of\", jax.process_count(), \"sees\", jax.device_count(), \"devices\")'"
