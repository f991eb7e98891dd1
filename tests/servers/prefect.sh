#!/usr/bin/env bash
# An environment with Prefect for tests/test_deploy.py: its versions of some libraries are not those of constraints.txt.
#   export STFGAN_XR_PREFECT="$(tests/servers/prefect.sh start FOLDER)"  installs what is missing, says its interpreter
#   tests/servers/prefect.sh stop FOLDER                                 does nothing: each flow has a server of its own
set -euo pipefail
# shellcheck source=tests/servers/common.sh
source "$(dirname "$0")/common.sh"

if [[ $command == stop ]]; then exit; fi
install_python "prefect>=3.4,<4"
echo "$folder/venv/bin/python"
