#!/usr/bin/env bash
# An object store for tests/test_s3.py: moto's server, whose buckets live in memory.
#   export STFGAN_XR_S3="$(tests/servers/s3.sh start FOLDER)"  installs what is missing, starts, says its address
#   tests/servers/s3.sh stop FOLDER                            stops what it started; FOLDER can then be deleted
set -euo pipefail
# shellcheck source=tests/servers/common.sh
source "$(dirname "$0")/common.sh"

if [[ $command == stop ]]; then
  stop_server
  exit
fi
if ! is_up /moto-api/; then
  install_python "moto[s3,server]>=5.2,<6"
  trap '[[ $? == 0 ]] || stop_server' EXIT
  stop_server
  port="$(free_port)"
  serve "$port" /moto-api/ moto.server -H 127.0.0.1 -p "$port"
fi
cat "$folder/address"
