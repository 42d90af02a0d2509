#!/bin/sh
# Makes the secrets that compose.yaml mounts, once, readable by their owner only. The containers that read them run under
# that owner's number, which goes to .env beside it. Where there are secrets already, nothing is changed.
set -eu
cd "$(dirname "$0")"
if [ -e secrets ]; then
    echo "secrets/ is there already; to make new ones, remove it, .env and the volumes first" >&2
    exit 1
fi
if [ "$(id -u)" -eq 0 ]; then
    owner=10001 group=10001
else
    owner=$(id -u) group=$(id -g)
fi
umask 077
random() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }
mkdir secrets
for name in postgres-password server-secret ray-token grafana-password; do
    random > "secrets/$name"
done
printf 'postgres:5432:sleddog:sleddog:%s\n' "$(cat secrets/postgres-password)" > secrets/pgpass
if [ "$(id -u)" -eq 0 ]; then
    chown -R "$owner:$group" secrets
fi
printf 'SLEDDOG_UID=%s\nSLEDDOG_GID=%s\n' "$owner" "$group" > .env
mkdir -p data
echo "made secrets/ and .env, owned by $owner:$group"
