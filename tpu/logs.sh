#!/usr/bin/env bash
# Prints what the command of tpu/run.sh says.
#
#   tpu/logs.sh --name=run1 --zone=us-west4-a --follow
#
# Flags of its own:
#   --worker=N  of each slice, or all (0, which shows the progress)
#   --lines=N   so many of the last ones (100)
#   --follow    and whatever comes, until Ctrl-C

set -euo pipefail
# shellcheck source=tpu/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
settings "$@"

WORKER=0
LINES=100
FOLLOW=""
for flag in ${REST[@]+"${REST[@]}"}; do
  case "$flag" in
    --worker=*) WORKER="${flag#*=}" ;;
    --lines=*) LINES="${flag#*=}" ;;
    --follow) FOLLOW=" -F" ;;
    *) fail "unknown flag $flag; see --help" ;;
  esac
done
[[ "$WORKER" =~ ^([0-9]+|all)$ ]] || fail "--worker=$WORKER: must be a number or all"
[[ "$LINES" =~ ^[0-9]+$ ]] || fail "--lines=$LINES: must be a number"
on_workers "$WORKER" "tail -n $LINES$FOLLOW ~/$REMOTE.log"
