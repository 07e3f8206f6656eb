#!/usr/bin/env bash
# A Slurm of one node, this machine with two CPUs, to try things out; it knows nothing of the machine's own.
#
#   apt-get install slurm-wlm munge        # Debian, Ubuntu
#   eval "$(tests/slurm/one_node.sh start FOLDER)" && sinfo
#   tests/slurm/one_node.sh stop FOLDER
#
# FOLDER takes keys, state and logs; `start` prints what lets sbatch, srun and scontrol find it.
set -euo pipefail
export PATH="$PATH:/usr/sbin"
mkdir -p "$2" && folder=$(cd "$2" && pwd) && user=$(id -un) && node=$(hostname -s)
daemons=(slurmd slurmctld munged)

case $1 in
start)
    mkdir -p "$folder"/{state,spool} && chmod 755 "$folder"
    [ -s "$folder/munge.key" ] || (umask 077; head -c 128 /dev/urandom > "$folder/munge.key")
    cat > "$folder/slurm.conf" << CONF
ClusterName=one_node
SlurmctldHost=$node
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket,cred_expire=5
SlurmctldPort=26817
SlurmdPort=26818
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=30
ReturnToService=2
GresTypes=gpu
NodeName=$node CPUs=2 Gres=gpu:2
PartitionName=low Nodes=$node Default=YES PriorityTier=1 GraceTime=60
PartitionName=high Nodes=$node PriorityTier=2 PreemptMode=off
CONF
    echo "NodeName=$node Name=gpu File=/dev/tty[0-1]" > "$folder/gres.conf"  # in name alone
    export SLURM_CONF=$folder/slurm.conf
    munged --force --key-file "$folder/munge.key" --socket "$folder/munge.socket" \
        --pid-file "$folder/munged.pid" --log-file "$folder/munged.log" --seed-file "$folder/munge.seed" >&2
    slurmctld -i >&2
    slurmd >&2
    for _ in $(seq 30); do
        sinfo --noheader --format %T 2> /dev/null | grep -q idle && break
        sleep 1
    done
    sinfo >&2
    echo "export SLURM_CONF=$SLURM_CONF"
    ;;
stop)
    for name in "${daemons[@]}"; do
        [ ! -s "$folder/$name.pid" ] || kill "$(cat "$folder/$name.pid")" || true
    done
    ;;
*)
    echo "accepted: start FOLDER, stop FOLDER" >&2
    exit 2
    ;;
esac
