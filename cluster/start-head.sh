#!/bin/sh
# Start the head node; further arguments go to `ray start` and win over these:  sh cluster/start-head.sh --block
set -eu
here="$(dirname "$0")"
[ -n "${RAY_AUTH_TOKEN:-}" ] || sh "$here/make-token.sh"
. "$here/environment.sh"
# shellcheck disable=SC2086
exec ray start --head --port 6379 --dashboard-host 127.0.0.1 --dashboard-port 8265 --ray-client-server-port 10001 $MUCD_NODE_PORTS "$@"
