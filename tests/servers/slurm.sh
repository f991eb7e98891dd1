#!/usr/bin/env bash
# A batch system for tests/test_slurm.py: SLURM, its controller and its one node on this machine, all files in FOLDER.
#   export STFGAN_XR_SLURM="$(tests/servers/slurm.sh start FOLDER)"  installs what is missing, starts, says its slurm.conf
#   tests/servers/slurm.sh stop FOLDER                               stops what it started; FOLDER can then be deleted
# Needs Debian or Ubuntu, and root: slurmd starts jobs as their users. Use: SLURM_CONF=$STFGAN_XR_SLURM sinfo
set -euo pipefail
# shellcheck source=tests/servers/common.sh
source "$(dirname "$0")/common.sh"
daemons=(slurmd slurmctld munged)

# runs DAEMON: the number may have gone to another process since.
runs() {
  [[ -s $folder/$1.pid ]] && grep -qzF "$1" "/proc/$(cat "$folder/$1.pid" 2>/dev/null)/cmdline" 2>/dev/null
}

stop() {
  local daemon pid try
  if runs slurmctld && runs slurmd; then
    export SLURM_CONF="$folder/slurm.conf"
    scancel --quiet --me || true
    # Without its daemon nobody kills a job that does not end by itself within KillWait.
    for ((try = 0; try < 350; try++)); do
      [[ -n "$(squeue -h 2>/dev/null)" ]] || break
      sleep 0.1
    done
  fi
  for daemon in "${daemons[@]}"; do
    runs "$daemon" || continue
    pid="$(cat "$folder/$daemon.pid")"
    kill "$pid" || true
    for ((try = 0; try < 100; try++)); do
      runs "$daemon" || break
      sleep 0.1
    done
    if runs "$daemon"; then kill -9 "$pid"; fi
    rm -f "$folder/$daemon.pid"
  done
}

install_packages() {
  command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v munged >/dev/null && return
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq >"$folder/apt.log" 2>&1 || fail "apt-get update failed; see $folder/apt.log"
  apt-get install -y -qq --no-install-recommends slurm-wlm munge >>"$folder/apt.log" 2>&1 ||
    fail "slurm-wlm cannot be installed; see $folder/apt.log"
}

configure() {
  local host memory
  host="$(hostname -s)"
  memory="$(awk '/MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)"
  mkdir -p "$folder/state" "$folder/spool"
  cat >"$folder/slurm.conf" <<CONF
ClusterName=stfgan
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
ReturnToService=2
MailProg=/bin/true
KillWait=20
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$memory
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
}

start_daemons() {
  local try
  # Munge trusts only a key and a socket that nobody else could have changed.
  (umask 077 && head -c 1024 /dev/urandom >"$folder/munge.key")
  munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
    --log-file="$folder/munged.log" --seed-file="$folder/munge.seed" </dev/null >"$folder/munged.out" 2>&1 ||
    fail "munged does not start; see $folder/munged.out"
  export SLURM_CONF="$folder/slurm.conf"
  slurmctld -f "$SLURM_CONF" </dev/null >"$folder/slurmctld.out" 2>&1 || fail "slurmctld does not start; see $folder/slurmctld.out"
  slurmd -f "$SLURM_CONF" </dev/null >"$folder/slurmd.out" 2>&1 || fail "slurmd does not start; see $folder/slurmd.out"
  for ((try = 0; try < 120; try++)); do
    if sinfo -h -o %t 2>/dev/null | grep -qx idle; then return; fi
    sleep 0.5
  done
  fail "the node does not become idle; see $folder/slurmctld.log and $folder/slurmd.log"
}

if [[ $command == stop ]]; then
  stop
  exit
fi
if ! { runs slurmctld && runs slurmd && runs munged; }; then
  [[ $EUID == 0 ]] || fail "SLURM starts jobs as their users; run as root"
  install_packages
  chmod 755 "$folder"
  trap '[[ $? == 0 ]] || stop' EXIT
  stop
  configure
  start_daemons
fi
echo "$folder/slurm.conf"
