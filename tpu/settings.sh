# shellcheck shell=bash
# What all scripts of this folder share: settings, from flags or the environment, and how commands
# are run or, with --dry-run, printed. Sourced, not run.

# shellcheck disable=SC2034  # settings are read by the scripts that source this file

NAME="${NAME:-}"
ZONE="${ZONE:-}"
PROJECT="${PROJECT:-}"
TOPOLOGY="${TOPOLOGY:-}"
NUM_SLICES="${NUM_SLICES:-1}"
RUNTIME_VERSION="${RUNTIME_VERSION:-}"
CAPACITY="${CAPACITY:-on-demand}"
ENV_FILE="${ENV_FILE:-}"
REMOTE="t5lite-run"
# Whether the command runs, asked on a worker; one that ended and whose parent never asks is a Z.
# shellcheck disable=SC2034 # other scripts use it
RUNNING="ps -o stat= -p \"\$(cat ~/$REMOTE.pid)\" | grep -q '^[^Z]'"
DRY_RUN=false
YES=false
REST=()

fail() {
  echo "$(basename "$0"): $1" >&2
  exit 2
}

# The comment at the head of a script is its help.
help() {
  sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
  cat <<'HELP'
Shared flags, each also a variable of the environment in capitals:
  --name=NAME            of the queued resource and its nodes (NAME)
  --zone=ZONE            such as us-west4-a (ZONE)
  --project=PROJECT      gcloud's own default without it (PROJECT)
  --num-slices=N         slices joined by the data centre's network (NUM_SLICES, 1)
  --dry-run              print the exact commands and run none
HELP
  exit 0
}

# Reads the flags that all scripts have; what it does not know is left in REST.
settings() {
  while (($#)); do
    case "$1" in
      --name=*) NAME="${1#*=}" ;;
      --zone=*) ZONE="${1#*=}" ;;
      --project=*) PROJECT="${1#*=}" ;;
      --num-slices=*) NUM_SLICES="${1#*=}" ;;
      --dry-run) DRY_RUN=true ;;
      --yes) YES=true ;;
      --help | -h) help ;;
      --)
        REST+=("$@")
        break
        ;;
      *) REST+=("$1") ;;
    esac
    shift
  done
  [[ -n "$NAME" ]] || fail "no name: --name=NAME, or export NAME"
  [[ "$NAME" =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] ||
    fail "--name=$NAME: lower-case letters, digits and dashes, a letter first"
  [[ -n "$ZONE" ]] || fail "no zone: --zone=ZONE, or export ZONE"
  [[ "$NUM_SLICES" =~ ^[1-9][0-9]*$ ]] || fail "--num-slices=$NUM_SLICES: must be at least 1"
  if ! $DRY_RUN && ! command -v gcloud >/dev/null; then
    fail "gcloud is not installed: https://cloud.google.com/sdk/docs/install"
  fi
  WHERE=("--zone=$ZONE")
  if [[ -n "$PROJECT" ]]; then WHERE+=("--project=$PROJECT"); fi
}

# Runs a command, or prints it so that it can be pasted into a shell.
run() {
  if $DRY_RUN; then
    printf '%q ' "$@" | sed 's/ $//'
    echo
  else
    "$@"
  fi
}

# The names of the nodes, one for each slice.
nodes() {
  if ((NUM_SLICES == 1)); then
    echo "$NAME"
  else
    for ((slice = 0; slice < NUM_SLICES; slice++)); do echo "$NAME-$slice"; done
  fi
}

# Runs a shell command on every worker of every slice, or on those of --worker=.
on_workers() {
  local worker="$1" command="$2" node
  local -a pids=()
  for node in $(nodes); do
    if $DRY_RUN; then
      run gcloud compute tpus tpu-vm ssh "$node" "${WHERE[@]}" "--worker=$worker" "--command=$command"
    else
      gcloud compute tpus tpu-vm ssh "$node" "${WHERE[@]}" "--worker=$worker" "--command=$command" &
      pids+=($!)
    fi
  done
  local failed=0 pid
  for pid in ${pids[@]+"${pids[@]}"}; do wait "$pid" || failed=1; done
  return "$failed"
}

# The state of the queued resource, or nothing if there is none.
state() {
  gcloud compute tpus queued-resources describe "$NAME" "${WHERE[@]}" \
    '--format=value(state.state)' 2>/dev/null || true
}
