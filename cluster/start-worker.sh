#!/bin/sh
# Join a head, and join again whenever Ray ends on this node, as it does a minute after the head is out of reach:
#   sh cluster/start-worker.sh HEAD_IP:6379 [more for `ray start`]
set -eu
address="${1:?usage: sh cluster/start-worker.sh HEAD_IP:6379 [more for ray start]}"
shift
. "$(dirname "$0")/environment.sh"
ray_pid=
trap 'trap - INT TERM; [ -z "$ray_pid" ] || { kill "$ray_pid" 2>/dev/null; wait "$ray_pid"; }; exit 143' INT TERM
while true; do
    # In the background, so that a signal to this script is not held up until Ray ends.
    # shellcheck disable=SC2086
    ray start --address "$address" --block $MUCD_NODE_PORTS "$@" &
    ray_pid=$!
    wait "$ray_pid" || true
    ray_pid=
    echo "Ray has ended on this node: joining $address again in 5 seconds" >&2
    sleep 5
done
