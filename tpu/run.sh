#!/usr/bin/env bash
# Starts the same command on every worker of every slice, and returns while it runs.
#
#   tpu/run.sh --name=run1 --zone=us-west4-a -- t5lite train \
#     --gin_file=configs/t5_1_1_base_c4.gin --gin.MODEL_DIR='"gs://BUCKET/run1"'
#
# The command goes on when the connection ends; its output is read by tpu/logs.sh. Started again
# after it has ended, or on new machines, a training resumes from its last checkpoint. Flags of its
# own:
#   --env-file=FILE  lines NAME=VALUE for the command's environment, such as AWS_ENDPOINT_URL and
#                    AWS_ACCESS_KEY_ID of an S3-like store (ENV_FILE); never printed
#   --files=FOLDER   copied to the workers first; the command runs inside of its copy

set -euo pipefail
# shellcheck source=tpu/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
settings "$@"

FILES=""
COMMAND=()
for ((index = 0; index < ${#REST[@]}; index++)); do
  case "${REST[index]}" in
    --env-file=*) ENV_FILE="${REST[index]#*=}" ;;
    --files=*) FILES="${REST[index]#*=}" ;;
    --)
      COMMAND=("${REST[@]:index+1}")
      break
      ;;
    *) fail "unknown flag ${REST[index]}; the command comes after --" ;;
  esac
done
((${#COMMAND[@]})) || fail "no command: tpu/run.sh ... -- t5lite train --gin_file=..."
for file in "$ENV_FILE" "$FILES"; do
  [[ -z "$file" || -e "$file" ]] || fail "$file: no such file"
done

copy() {
  local node
  for node in $(nodes); do
    run gcloud compute tpus tpu-vm scp --recurse "$1" "$node:$2" "${WHERE[@]}" --worker=all
  done
}
if [[ -n "$ENV_FILE" ]]; then copy "$ENV_FILE" "$REMOTE-env"; fi
if [[ -n "$FILES" ]]; then
  on_workers all "rm -rf $REMOTE-files"
  copy "$FILES" "$REMOTE-files"
fi

# Every word is quoted once for the workers' shell, and so arrives as it was typed here.
printf -v QUOTED '%q ' "${COMMAND[@]}"
on_workers all "set -e
if test -e ~/$REMOTE.pid && $RUNNING; then
  echo \"a command is running already, process \$(cat ~/$REMOTE.pid): tpu/status.sh\" >&2
  exit 1
fi
cd ~
test ! -d $REMOTE-files || cd $REMOTE-files
test ! -f ~/$REMOTE-env || { set -a; . ~/$REMOTE-env; set +a; }
export PATH=~/$REMOTE/bin:\$PATH
nohup setsid ${QUOTED% } > ~/$REMOTE.log 2>&1 < /dev/null &
echo \$! > ~/$REMOTE.pid
echo \"started on \$(hostname): process \$!\""
