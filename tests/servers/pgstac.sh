#!/usr/bin/env bash
# A real STAC API for tests/test_pgstac.py: stac-fastapi-pgstac on a PostgreSQL with PostGIS, both in FOLDER only.
#   export STFGAN_XR_PGSTAC="$(tests/servers/pgstac.sh start FOLDER)"  installs what is missing, starts, says its address
#   tests/servers/pgstac.sh stop FOLDER                                stops what it started; FOLDER can then be deleted
# Needs Debian or Ubuntu, and root where PostgreSQL and PostGIS are not yet installed. FOLDER: below /tmp, not in a home.
set -euo pipefail
# shellcheck source=tests/servers/common.sh
source "$(dirname "$0")/common.sh"

# PostgreSQL refuses to run as root.
as_postgres() {
  if [[ $EUID == 0 ]]; then (cd / && runuser -u postgres -- "$@"); else "$@"; fi
}

find_postgres() {
  local found version
  bin=""
  for found in $(printf '%s\n' /usr/lib/postgresql/*/bin/initdb | sort -rV); do
    version="$(basename "$(dirname "$(dirname "$found")")")"
    if [[ -x $found && -e /usr/share/postgresql/$version/extension/postgis.control ]]; then
      bin="$(dirname "$found")"
      return
    fi
  done
}

install_packages() {
  local server
  find_postgres
  [[ -n $bin ]] && return
  [[ $EUID == 0 ]] || fail "PostgreSQL with PostGIS is missing; install postgresql-N-postgis-3, or run as root"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq >"$folder/apt.log" 2>&1 || fail "apt-get update failed; see $folder/apt.log"
  server="$(apt-cache depends postgresql | grep -om1 'postgresql-[0-9]*$')" || fail "apt knows no package postgresql"
  apt-get install -y -qq --no-install-recommends "$server" "$server-postgis-3" >>"$folder/apt.log" 2>&1 ||
    fail "$server-postgis-3 cannot be installed; see $folder/apt.log"
  find_postgres
  [[ -n $bin ]] || fail "$server-postgis-3 is installed, but lacks initdb or PostGIS"
}

database_runs() {
  [[ -n $bin && -d $folder/data ]] && as_postgres "$bin/pg_ctl" -D "$folder/data" status >/dev/null 2>&1
}

make_cluster() {
  [[ -e $folder/data/PG_VERSION ]] && return
  rm -rf "$folder/data"
  mkdir "$folder/data"
  (umask 077 && python3 -c 'import secrets; print(secrets.token_hex(16))' >"$folder/password")
  if [[ $EUID == 0 ]]; then chown postgres: "$folder/data" "$folder/password"; fi
  as_postgres "$bin/initdb" -D "$folder/data" -U pgstac -A scram-sha-256 --pwfile "$folder/password" -E UTF8 \
    --locale C.UTF-8 --no-sync >"$folder/initdb.log" 2>&1 || fail "initdb failed; see $folder/initdb.log"
}

start_database() {
  make_cluster
  if ! database_runs; then
    # Nothing here has to outlive a power cut.
    as_postgres "$bin/pg_ctl" -D "$folder/data" -l "$folder/data/log" -w -t 60 start -o "-p $(free_port) \
      -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off -c full_page_writes=off" \
      >/dev/null 2>&1 || fail "PostgreSQL does not start; see $folder/data/log"
  fi
  PGPORT="$(sed -n 4p "$folder/data/postmaster.pid")"
  PGPASSWORD="$(cat "$folder/password")"
  export PGHOST=127.0.0.1 PGPORT PGUSER=pgstac PGDATABASE=postgis PGPASSWORD
  "$bin/psql" -qAtd postgres -c "SELECT 1 FROM pg_database WHERE datname = '$PGDATABASE'" | grep -q 1 ||
    "$bin/psql" -qd postgres -c "CREATE DATABASE $PGDATABASE" >&2 || fail "no database; see $folder/data/log"
  "$folder/venv/bin/pypgstac" migrate >"$folder/migrate.log" 2>&1 || fail "no tables; see $folder/migrate.log"
  # Pages shall state numberMatched.
  "$bin/psql" -qc "INSERT INTO pgstac.pgstac_settings (name, value) VALUES ('context', 'on')
    ON CONFLICT (name) DO UPDATE SET value = EXCLUDED.value" >&2 || fail "pgstac takes no settings"
}

stop() {
  stop_server
  find_postgres
  if database_runs; then
    as_postgres "$bin/pg_ctl" -D "$folder/data" -m fast -w -t 60 stop >/dev/null 2>&1 ||
      fail "PostgreSQL does not stop; see $folder/data/log"
  fi
}

if [[ $command == stop ]]; then
  stop
  exit
fi
if ! is_up /collections; then
  install_packages
  chmod a+x "$folder"
  as_postgres test -x "$folder" || fail "$folder: the user postgres cannot reach it; choose a folder below /tmp"
  install_python "stac-fastapi-pgstac==7.2.*" "pypgstac[psycopg]==0.10.*" uvicorn
  trap '[[ $? == 0 ]] || stop' EXIT
  stop_server
  start_database
  port="$(free_port)"
  export ENABLE_TRANSACTIONS_EXTENSIONS=TRUE DB_MIN_CONN_SIZE=1 DB_MAX_CONN_SIZE=4
  serve "$port" /collections uvicorn --factory stac_fastapi.pgstac.app:create_app --host 127.0.0.1 --port "$port"
fi
cat "$folder/address"
