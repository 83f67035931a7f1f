#!/bin/sh
# Certificates for RAY_USE_TLS=1, one per node:  sh cluster/make-tls.sh FOLDER ADDRESS...
# ADDRESS is the IP or name under which the other nodes reach a node. FOLDER/ADDRESS/ holds what that node needs in ~/.ray/tls (ca.crt,
# node.crt, node.key). FOLDER/ca.key signs them: keep it off the cluster. More nodes can be added later with the same FOLDER.
set -eu
umask 077
folder="${1:?usage: sh cluster/make-tls.sh FOLDER ADDRESS...}"
shift
days="${TLS_DAYS:-365}"
mkdir -p "$folder"
if [ ! -s "$folder/ca.key" ]; then
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj "/CN=mucd_ray cluster" \
        -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign -keyout "$folder/ca.key" -out "$folder/ca.crt" 2>/dev/null
fi
for address in "$@"; do
    node="$folder/$address"
    mkdir -p "$node"
    case "$address" in
        *[!0-9.]*) name="DNS:$address" ;;
        *) name="IP:$address" ;;
    esac
    printf '%s\n' "subjectAltName=$name,IP:127.0.0.1,DNS:localhost" "extendedKeyUsage=serverAuth,clientAuth" > "$node/extensions"
    openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$address" -keyout "$node/node.key" -out "$node/request" 2>/dev/null
    openssl x509 -req -in "$node/request" -CA "$folder/ca.crt" -CAkey "$folder/ca.key" -CAcreateserial -days "$days" \
        -extfile "$node/extensions" -out "$node/node.crt" 2>/dev/null
    cp "$folder/ca.crt" "$node/ca.crt"
    rm "$node/request" "$node/extensions"
done
