# What the scripts of this folder share; sourced by them, with the command line of theirs: start|stop FOLDER.
# shellcheck shell=bash
script="$(basename "$0")"

fail() {
  echo "$script: $*" >&2
  exit 1
}

[[ $# == 2 && ($1 == start || $1 == stop) ]] || fail "usage: $script start|stop FOLDER"
command="$1"
mkdir -p "$2" || fail "$2: cannot be made; choose another folder"
folder="$(cd "$2" && pwd)"

# install_python REQUIREMENT...: an environment of its own, for the project's would not take all of it.
install_python() {
  local stamp="$folder/venv/.installed"
  [[ -e $stamp && "$(cat "$stamp")" == "$*" ]] && return
  python3 -m venv "$folder/venv" >&2 || fail "python3 has no venv module; install python3-venv"
  "$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@" >"$folder/pip.log" 2>&1 ||
    fail "$* cannot be installed; see $folder/pip.log"
  echo "$*" >"$stamp"
}

free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

answers() {
  python3 -c 'import sys, urllib.request as r; r.build_opener(r.ProxyHandler({})).open(sys.argv[1], timeout=5).read()' \
    "$1" 2>/dev/null
}

# The number may have gone to another process since.
server_runs() {
  [[ -s $folder/server.pid ]] &&
    tr '\0' ' ' 2>/dev/null <"/proc/$(cat "$folder/server.pid")/cmdline" | grep -qF "$folder/venv"
}

# is_up PATH: whether a former start still serves.
is_up() {
  [[ -s $folder/address ]] && server_runs && answers "$(cat "$folder/address")$1"
}

# serve PORT PATH COMMAND...: start a server of the environment and wait until it answers at a path.
serve() {
  local port="$1" path="$2" try
  shift 2
  setsid "$folder/venv/bin/python" -m "$@" </dev/null >"$folder/server.log" 2>&1 &
  echo $! >"$folder/server.pid"
  echo "http://127.0.0.1:$port" >"$folder/address"
  for ((try = 0; try < 120; try++)); do
    if answers "http://127.0.0.1:$port$path"; then return; fi
    sleep 0.5
    server_runs || break
  done
  fail "the server does not start; see $folder/server.log"
}

stop_server() {
  local pid try
  if server_runs; then
    pid="$(cat "$folder/server.pid")"
    kill "$pid" || true
    for ((try = 0; try < 100; try++)); do
      server_runs || break
      sleep 0.1
    done
    if server_runs; then kill -9 "$pid"; fi
  fi
  rm -f "$folder/server.pid" "$folder/address"
}
