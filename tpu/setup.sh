#!/usr/bin/env bash
# Installs t5lite on every worker, in a Python of its own.
#
#   tpu/setup.sh --name=run1 --zone=us-west4-a
#
# The machines' image has Python 3.10 and JAX needs 3.11, so uv brings one: a single program that
# needs neither root nor a reboot. What is installed already stays. Flags of its own:
#   --source=WHAT   a folder or wheel here, copied to the workers first (the default is this
#                   checkout: files that git tracks or does not ignore), git+https://..., or
#                   t5lite==VERSION from the package index
#   --extras=NAMES  comma-separated, besides tpu: gs for TensorBoard on GCS, s3, tokenizers (gs)

set -euo pipefail
# shellcheck source=tpu/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
settings "$@"

SOURCE="$(realpath "$(dirname "${BASH_SOURCE[0]}")/..")"
EXTRAS=gs
for flag in ${REST[@]+"${REST[@]}"}; do
  case "$flag" in
    --source=*) SOURCE="${flag#*=}" ;;
    --extras=*) EXTRAS="${flag#*=}" ;;
    *) fail "unknown flag $flag; see --help" ;;
  esac
done
EXTRAS="tpu${EXTRAS:+,$EXTRAS}"
FOLDER="$REMOTE-source"

# Copies a file or folder to ~/$FOLDER of every worker.
copy_source() {
  local node
  for node in $(nodes); do
    run gcloud compute tpus tpu-vm ssh "$node" "${WHERE[@]}" --worker=all \
      "--command=rm -rf $FOLDER && mkdir -p $FOLDER"
    run gcloud compute tpus tpu-vm scp --recurse "$1" "$node:$FOLDER/" "${WHERE[@]}" --worker=all
  done
}

if [[ -d "$SOURCE" ]] && git -C "$SOURCE" rev-parse --git-dir >/dev/null 2>&1; then
  # Without .git, environments and runs, which may be gigabytes: one archive of the sources.
  ARCHIVE="${TMPDIR:-/tmp}/$FOLDER-$NAME-$$.tar.gz"
  trap 'rm -f "$ARCHIVE"' EXIT
  # shellcheck disable=SC2016 # the inner shell expands them; a deleted file may still be listed
  run bash -c 'cd "$0" && git ls-files -z --cached --others --exclude-standard |'\
' while IFS= read -r -d "" file; do [ ! -e "$file" ] || printf "%s\0" "$file"; done |'\
' tar --create --gzip --file="$1" --null --files-from=-' "$SOURCE" "$ARCHIVE"
  copy_source "$ARCHIVE"
  on_workers all "cd $FOLDER && tar --extract --gzip --file=$(basename "$ARCHIVE") &&
    rm $(basename "$ARCHIVE")"
  REQUIREMENT="t5lite[$EXTRAS] @ file://\$HOME/$FOLDER"
elif [[ -e "$SOURCE" ]]; then
  copy_source "$SOURCE"
  REQUIREMENT="t5lite[$EXTRAS] @ file://\$HOME/$FOLDER/$(basename "$(realpath "$SOURCE")")"
elif [[ "$SOURCE" =~ ^t5lite([^a-z/].*)?$ ]]; then
  REQUIREMENT="t5lite[$EXTRAS]${SOURCE#t5lite}"
elif [[ "$SOURCE" == *://* ]]; then
  REQUIREMENT="t5lite[$EXTRAS] @ $SOURCE"
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
