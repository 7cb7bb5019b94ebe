#!/usr/bin/env bash
# Run a Prefect server on a PostgreSQL of its own, both on 127.0.0.1, until Ctrl-C.
#
#   infra/prefect/serve.sh DATA [PORT] [POSTGRES_PORT]      (4200, 5442)
#
# DATA keeps the database, its log and its generated password; the next start goes on from there. Needs PostgreSQL 14
# or later (Debian: apt-get install postgresql; its own service is not used) and .venv. PostgreSQL refuses to run as
# root, so under root it runs as the user postgres, who must be able to enter DATA's parent folders.
set -euo pipefail
data=$(realpath -m "${1:?usage: serve.sh DATA [PORT] [POSTGRES_PORT]}") port=${2:-4200} pg_port=${3:-5442}
cd "$(dirname "$0")/../.."

installed=$(find /usr/lib/postgresql -mindepth 2 -maxdepth 2 -name bin 2> /dev/null | sort -V | tail -n 1)
PATH=${installed:+$installed:}$PATH
command -v initdb > /dev/null || { echo "serve.sh: no PostgreSQL here: apt-get install postgresql" >&2; exit 1; }

as_postgres() { if [ "$(id -u)" = 0 ]; then (cd / && setpriv --reuid=postgres --regid=postgres --init-groups "$@"); else "$@"; fi; }

umask 077
if [ ! -f "$data/db/PG_VERSION" ]; then
  mkdir -p "$data/db"
  head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n' > "$data/password"
  if [ "$(id -u)" = 0 ]; then chown -R postgres: "$data"; fi
  as_postgres initdb --pgdata="$data/db" --username=prefect --pwfile="$data/password" --auth=scram-sha-256 \
    --encoding=UTF8 --locale=C > "$data/initdb.log"
fi
as_postgres pg_ctl start --pgdata="$data/db" --log="$data/db/server.log" --wait --silent \
  --options="-p $pg_port -c listen_addresses=127.0.0.1 -k '$data/db'"
server=
stop() {
  if [ -n "$server" ]; then kill "$server" 2> /dev/null || true; wait "$server" 2> /dev/null || true; fi
  as_postgres pg_ctl stop --pgdata="$data/db" --mode=fast --silent || true
}
trap stop EXIT
trap 'exit 0' INT TERM

PGPASSWORD=$(cat "$data/password")
export PGPASSWORD
if [ -z "$(psql -h 127.0.0.1 -p "$pg_port" -U prefect -d postgres -Atc "select 1 from pg_database where datname='prefect'")" ]; then
  createdb -h 127.0.0.1 -p "$pg_port" -U prefect prefect
fi

export PREFECT_SERVER_DATABASE_CONNECTION_URL="postgresql+asyncpg://prefect:$PGPASSWORD@127.0.0.1:$pg_port/prefect"
export PREFECT_SERVER_UI_API_URL="http://127.0.0.1:$port/api"
export PREFECT_SERVER_ANALYTICS_ENABLED=false DO_NOT_TRACK=1
echo "Prefect on PostgreSQL: export PREFECT_API_URL=http://127.0.0.1:$port/api   (Ctrl-C ends both)"
.venv/bin/prefect server start --host 127.0.0.1 --port "$port" &
server=$!
wait "$server"
