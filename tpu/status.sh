#!/usr/bin/env bash
# Says how the request stands, whether the command runs on every worker, and its last line.
#
#   tpu/status.sh --name=run1 --zone=us-west4-a

set -euo pipefail
# shellcheck source=tpu/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
settings "$@"
((${#REST[@]} == 0)) || fail "unknown flag ${REST[0]}; see --help"

run gcloud compute tpus queued-resources describe "$NAME" "${WHERE[@]}" \
  '--format=value(state.state)'
if ! $DRY_RUN; then
  STATE="$(state)"
  if [[ "$STATE" != ACTIVE ]]; then exit 0; fi
fi
for node in $(nodes); do
  run gcloud compute tpus tpu-vm describe "$node" "${WHERE[@]}" '--format=value(state,health)'
done
on_workers all "printf '%s: ' \"\$(hostname)\"
if test ! -e ~/$REMOTE.pid; then echo nothing was started
elif $RUNNING; then echo running; tail -n 1 ~/$REMOTE.log
else echo ended; tail -n 1 ~/$REMOTE.log; fi"
