#!/usr/bin/env bash
# A dask-gateway for tests/test_gateway.py, whose clusters are processes of this machine (its local backend).
#   export STFGAN_XR_GATEWAY="$(PYTHON=.venv/bin/python tests/servers/gateway.sh start FOLDER)"  installs, starts, says its address
#   tests/servers/gateway.sh stop FOLDER                                                         stops what it started
# PYTHON is the interpreter that schedulers and workers run in; dask-gateway must be installed there.
set -euo pipefail
# shellcheck source=tests/servers/common.sh
source "$(dirname "$0")/common.sh"

if [[ $command == stop ]]; then
  stop_server
  exit
fi
if ! is_up /api/health; then
  install_python "dask-gateway-server[local]>=2026.3,<2027"
  trap '[[ $? == 0 ]] || stop_server' EXIT
  stop_server
  python="$(command -v "${PYTHON:-python3}")" || fail "$PYTHON is not there"
  python="$(cd "$(dirname "$python")" && pwd)/$(basename "$python")" # jobs have other working folders
  port="$(free_port)"
  mkdir -p "$folder/clusters"
  cat >"$folder/config.py" <<CONF
c.DaskGateway.backend_class = "dask_gateway_server.backends.local.UnsafeLocalBackend"
c.DaskGateway.address = "127.0.0.1:$(free_port)"
c.Proxy.address = "127.0.0.1:$port"
c.UnsafeLocalBackend.clusters_directory = "$folder/clusters"
c.UnsafeLocalBackend.inherited_environment = ["PATH", "LANG", "PYTHONPATH", "OMP_NUM_THREADS"]
c.LocalClusterConfig.scheduler_cmd = ["$python", "-m", "distributed.cli.dask_scheduler"]
c.LocalClusterConfig.worker_cmd = ["$python", "-m", "distributed.cli.dask_worker"]
c.LocalClusterConfig.worker_cores = 1
c.LocalClusterConfig.worker_memory = "3 G"
CONF
  serve "$port" /api/health dask_gateway_server -f "$folder/config.py"
fi
cat "$folder/address"
