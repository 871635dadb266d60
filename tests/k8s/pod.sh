#!/usr/bin/env bash
# pod.sh NEW_ROOT VOLUMES COMMAND: a shell command as a container of k8s/ would run it. In namespaces
# of its own (mounts, processes, network), as user 10001 without capabilities, on a root file system
# that is read-only but for the folders of VOLUMES, which are mounted at their names.
# SHOWN lists the other folders that it sees.
set -euo pipefail
root=$1 volumes=$2 command=$3
mount -t tmpfs -o mode=755 none "$root"
show() {  # FOLDER TARGET OPTIONS
    mkdir -p "$root$2"
    mount --rbind "$1" "$root$2"
    mount -o "remount,bind,$3" "$root$2"
}
for link in /bin /lib /lib64 /sbin; do ln -s "usr$link" "$root$link"; done
for folder in /dev /proc /sys; do mkdir "$root$folder" && mount --rbind "$folder" "$root$folder"; done
mount -t tmpfs -o mode=1777 none "$root/dev/shm"
for folder in "$volumes"/*/; do
    at=/$(basename "$folder" | tr + /)
    chown -R 10001:10001 "$folder"
    show "$folder" "$at" rw
done
# after the volumes, below one of which they may lie
for folder in /usr /etc $SHOWN; do show "$folder" "$folder" ro; done
mount -o remount,ro "$root"
ip link set lo up
exec chroot --userspec=10001:10001 --groups= "$root" \
    setpriv --no-new-privs --bounding-set=-all bash -c "$command"
