#!/usr/bin/env bash
# Installs and starts a SLURM of one node on this machine (Debian, as root), for tests/runs/test_slurm.py.
set -euo pipefail
if ! command -v slurmctld > /dev/null; then
    apt-get update --quiet --quiet
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --quiet slurm-wlm munge > /dev/null
fi
node=$(hostname -s)
mkdir -p /etc/slurm /run/munge /var/log/munge /var/spool/slurmctld /var/spool/slurmd
cat > /etc/slurm/slurm.conf << CONF
ClusterName=rescue
SlurmctldHost=$node
SlurmUser=root
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
StateSaveLocation=/var/spool/slurmctld
SlurmdSpoolDir=/var/spool/slurmd
SlurmctldLogFile=/var/log/slurmctld.log
SlurmdLogFile=/var/log/slurmd.log
NodeName=$node CPUs=$(nproc) State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
[ -s /etc/munge/munge.key ] || mungekey --create
chown -R munge: /etc/munge /run/munge /var/log/munge /var/lib/munge
pgrep -x munged > /dev/null || runuser -u munge -- munged
pgrep -x slurmctld > /dev/null || slurmctld
pgrep -x slurmd > /dev/null || slurmd
for _ in $(seq 30); do
    if sinfo --noheader --format=%T 2> /dev/null | grep -qE 'idle|mixed|allocated'; then
        sinfo
        exit 0
    fi
    sleep 1
done
sinfo
tail -n 20 /var/log/slurmctld.log /var/log/slurmd.log
exit 1
