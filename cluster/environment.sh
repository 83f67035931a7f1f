# Sourced, before any `ray` command, on every node and by whoever submits jobs:  . cluster/environment.sh
# Token authentication; TLS if RAY_USE_TLS=1; one thread per worker; ports that a firewall can know.

umask 077
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH="${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export RAY_USAGE_STATS_ENABLED=0

# A node that is cut off is noticed within seconds; with gRPC's own defaults a driver may wait five minutes for it.
export RAY_grpc_client_keepalive_time_ms=10000
export RAY_grpc_client_keepalive_timeout_ms=5000

export MUCD_NODE_PORTS="--node-manager-port 6380 --object-manager-port 6381 --runtime-env-agent-port 6382 \
--dashboard-agent-grpc-port 6383 --dashboard-agent-listen-port 6384 --metrics-export-port 8080 --min-worker-port 10002 --max-worker-port 19999"

if [ -z "${RAY_AUTH_TOKEN:-}" ] && [ ! -s "$RAY_AUTH_TOKEN_PATH" ]; then
    echo "no token in $RAY_AUTH_TOKEN_PATH: copy the head's file there, or make one with cluster/make-token.sh" >&2
    return 1
fi
# Ray itself, and copies, make it readable by everybody.
chmod 600 "$RAY_AUTH_TOKEN_PATH" 2>/dev/null || true

if [ "${RAY_USE_TLS:-0}" = 1 ]; then
    export RAY_USE_TLS
    export RAY_TLS_DIR="${RAY_TLS_DIR:-$HOME/.ray/tls}"
    export RAY_TLS_CA_CERT="$RAY_TLS_DIR/ca.crt"
    export RAY_TLS_SERVER_CERT="$RAY_TLS_DIR/node.crt"
    export RAY_TLS_SERVER_KEY="$RAY_TLS_DIR/node.key"
    for file in "$RAY_TLS_CA_CERT" "$RAY_TLS_SERVER_CERT" "$RAY_TLS_SERVER_KEY"; do
        if [ ! -r "$file" ]; then
            echo "RAY_USE_TLS=1, but $file cannot be read: make this node's files with cluster/make-tls.sh and copy them there" >&2
            return 1
        fi
    done
fi
