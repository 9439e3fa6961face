#!/usr/bin/env bash
# Gives the slices and the request back, which ends what they cost. Asks first.
#
#   tpu/delete.sh --name=run1 --zone=us-west4-a
#
# Does nothing if there is none. Flags of its own:
#   --yes  do not ask

set -euo pipefail
# shellcheck source=tpu/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
settings "$@"
((${#REST[@]} == 0)) || fail "unknown flag ${REST[0]}; see --help"

if ! $DRY_RUN && [[ -z "$(state)" ]]; then
  echo "$NAME: there is none"
  exit 0
fi
if ! $DRY_RUN && ! $YES; then
  read -r -p "delete $NAME and everything on its machines? [y/N] " answer || answer=""
  [[ "$answer" == [yY]* ]] || fail "nothing was deleted"
fi
# --force deletes the nodes with it.
run gcloud compute tpus queued-resources delete "$NAME" "${WHERE[@]}" --force --quiet
