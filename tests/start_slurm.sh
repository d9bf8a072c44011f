#!/usr/bin/env bash
# Installs and starts a SLURM of two nodes, both on this machine (Debian, as root), for
# tests/runs/test_slurm.py.
set -euo pipefail
if ! command -v slurmctld > /dev/null; then
    apt-get update --quiet --quiet
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --quiet slurm-wlm munge > /dev/null
fi
host=$(hostname -s)
cores=$(getconf _NPROCESSORS_ONLN)  # nproc would heed OMP_NUM_THREADS
nodes=(rescue-1 rescue-2)
mkdir -p /etc/slurm /run/munge /var/log/munge /var/spool/slurmctld
cat > /etc/slurm/slurm.conf << CONF
ClusterName=rescue
SlurmctldHost=$host
SlurmUser=root
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
StateSaveLocation=/var/spool/slurmctld
SlurmdSpoolDir=/var/spool/slurmd-%n
SlurmdPidFile=/run/slurmd-%n.pid
SlurmctldLogFile=/var/log/slurmctld.log
SlurmdLogFile=/var/log/slurmd-%n.log
NodeName=${nodes[0]} NodeHostname=$host Port=17001 CPUs=$cores State=UNKNOWN
NodeName=${nodes[1]} NodeHostname=$host Port=17002 CPUs=$cores State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
for node in "${nodes[@]}"; do
    mkdir -p "/var/spool/slurmd-$node"
    # Tasks find each other by the name of their first node
    grep -q " $node\$" /etc/hosts || echo "127.0.0.1 $node" >> /etc/hosts
done
[ -s /etc/munge/munge.key ] || mungekey --create
chown -R munge: /etc/munge /run/munge /var/log/munge /var/lib/munge
pgrep -x munged > /dev/null || runuser -u munge -- munged
pgrep -x slurmctld > /dev/null || slurmctld
for node in "${nodes[@]}"; do
    pgrep -f "slurmd -N $node" > /dev/null || slurmd -N "$node"
done
ready() {
    sinfo --noheader --Node --format=%T 2> /dev/null | grep -cE 'idle|mixed|allocated' || true
}
for _ in $(seq 30); do
    if [ "$(ready)" = ${#nodes[@]} ]; then
        sinfo
        exit 0
    fi
    sleep 1
done
sinfo
tail -n 20 /var/log/slurmctld.log /var/log/slurmd-*.log
exit 1
