#!/bin/sh
# Make the cluster's token in RAY_AUTH_TOKEN_PATH (default ~/.ray/auth_token), readable by its owner only; an existing one is kept.
set -eu
umask 077
token="${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}"
if [ ! -s "$token" ]; then
    mkdir -p "$(dirname "$token")"
    od -An -v -tx1 -N32 /dev/urandom | tr -d ' \n' > "$token"
fi
chmod 600 "$token"
