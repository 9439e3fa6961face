#!/usr/bin/env bash
# Asks for a slice of TPUs, or several, as a queued resource, and waits until it is there.
#
#   tpu/create.sh --name=run1 --zone=us-west4-a --topology=v5e:4x4 --spot
#
# Does nothing if it exists already. Flags of its own:
#   --topology=KIND:SHAPE  in chips, as t5lite plan has it: v4, v5e, v5p or v6e (TOPOLOGY)
#   --spot                 cheaper, and may be taken away at any time (CAPACITY=spot)
#   --reserved             from a reservation (CAPACITY=reserved)
#   --runtime-version=V    of the machines' image, if not the one for JAX (RUNTIME_VERSION)
#   --valid-until=DURATION how long to stay in the queue, such as 6h
#   --no-wait              return as soon as the request is made

set -euo pipefail
# shellcheck source=tpu/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
settings "$@"

WAIT=true
VALID_UNTIL=""
for flag in ${REST[@]+"${REST[@]}"}; do
  case "$flag" in
    --topology=*) TOPOLOGY="${flag#*=}" ;;
    --spot) CAPACITY=spot ;;
    --reserved) CAPACITY=reserved ;;
    --runtime-version=*) RUNTIME_VERSION="${flag#*=}" ;;
    --valid-until=*) VALID_UNTIL="${flag#*=}" ;;
    --no-wait) WAIT=false ;;
    *) fail "unknown flag $flag; see --help" ;;
  esac
done
[[ "$TOPOLOGY" =~ ^(v4|v5e|v5p|v6e):([0-9]+(x[0-9]+){1,2})$ ]] ||
  fail "--topology=$TOPOLOGY: must be v4, v5e, v5p or v6e with a shape, such as v5e:4x4 or v5p:2x2x4"
KIND="${BASH_REMATCH[1]}"
SHAPE="${BASH_REMATCH[2]}"
CHIPS=$((${SHAPE//x/*}))

# Names count TensorCores on v4 and v5p, of which a chip has two, and chips on v5e and v6e.
# Source: cloud.google.com/tpu/docs, pages of each version; images: docs/runtimes.
case "$KIND" in
  v4) TYPE="v4-$((2 * CHIPS))" IMAGE=tpu-ubuntu2204-base ;;
  v5p) TYPE="v5p-$((2 * CHIPS))" IMAGE=v2-alpha-tpuv5 ;;
  v5e) TYPE="v5litepod-$CHIPS" IMAGE=v2-alpha-tpuv5-lite ;;
  v6e) TYPE="v6e-$CHIPS" IMAGE=v2-alpha-tpuv6e ;;
esac
REQUEST=("--accelerator-type=$TYPE" "--runtime-version=${RUNTIME_VERSION:-$IMAGE}")
if ((NUM_SLICES == 1)); then
  REQUEST+=("--node-id=$NAME")
else
  REQUEST+=("--node-count=$NUM_SLICES" "--node-prefix=$NAME")
fi
case "$CAPACITY" in
  on-demand) ;;
  spot | reserved) REQUEST+=("--$CAPACITY") ;;
  *) fail "CAPACITY=$CAPACITY: must be on-demand, spot or reserved" ;;
esac
if [[ -n "$VALID_UNTIL" ]]; then REQUEST+=("--valid-until-duration=$VALID_UNTIL"); fi

if $DRY_RUN; then
  run gcloud compute tpus queued-resources create "$NAME" "${WHERE[@]}" "${REQUEST[@]}"
  exit 0
fi
STATE="$(state)"
case "$STATE" in
  "") gcloud compute tpus queued-resources create "$NAME" "${WHERE[@]}" "${REQUEST[@]}" ;;
  FAILED | SUSPENDED) fail "$NAME is $STATE: tpu/delete.sh --name=$NAME --zone=$ZONE, then again" ;;
  *) echo "$NAME exists: $STATE" ;;
esac
while $WAIT; do
  STATE="$(state)"
  case "$STATE" in
    ACTIVE)
      echo "$NAME is there: $TYPE, slices: $NUM_SLICES"
      break
      ;;
    FAILED | SUSPENDED | SUSPENDING) fail "$NAME is $STATE; see tpu/status.sh" ;;
  esac
  echo "$(date +%H:%M:%S) $NAME: ${STATE:-not there yet}" >&2
  sleep "${POLL_SECONDS:-30}"
done
